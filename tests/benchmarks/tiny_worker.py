"""A worker of `benchmarks.accelerator` whose network compiles in a second.

`python -m tests.benchmarks.tiny_worker PROGRESS STEPS`: what the steps call is real, except for the
network, which has U-SAM's interface and its parts' names.
"""

import json
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from benchmarks.accelerator.steps import Step
from benchmarks.accelerator.worker import work
from usam_jax.models import usam


class TinyNetwork(nn.Module):
    """A product of one number per part with the image."""

    variant: usam.Variant
    num_classes: int
    image_size: int
    num_mask_tokens: int
    num_skips: int | None
    dtype: Any = jnp.float32
    remat: bool = False
    interactive: bool = False
    deep_supervision: bool = False

    def setup(self) -> None:
        parts = ("image_encoder", "mask_decoder", "prompt_encoder")
        for name in (*parts, *(["backbone"] if self.num_skips is not None else [])):
            setattr(self, name, nn.Dense(self.num_classes, dtype=self.dtype))
        self.scale = self.variable("constants", "scale", jnp.ones, ())

    def encode(self, images: Any, train: bool = False) -> usam.Features:
        x = images[..., None] * self.scale.value
        x = x if self.num_skips is None else self.backbone(x)
        return usam.Features(self.image_encoder(x), ())

    def decode(self, features: usam.Features, prompts: Any, train: bool = False) -> Any:
        x = self.mask_decoder(features.embedding)
        where = jnp.zeros((1, 2)) if prompts is None else prompts.points_xy.mean(1)
        return (x + self.prompt_encoder(where)[:, None, None]).astype(jnp.float32)

    def __call__(self, images: Any, prompts: Any = None, train: bool = False) -> Any:
        return self.decode(self.encode(images, train), prompts, train)


if __name__ == "__main__":
    usam.USam = TinyNetwork
    sys.exit(work(pathlib.Path(sys.argv[1]), [Step(**x) for x in json.loads(sys.argv[2])]))
