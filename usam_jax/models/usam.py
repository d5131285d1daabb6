"""The whole forward pass, top to bottom: slice -> features -> logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models.common.conv_encoder import ConvEncoder
from usam_jax.models.common.layers import Dtype
from usam_jax.models.sam.image_encoder import ImageEncoder
from usam_jax.models.sam.mask_decoder import MaskDecoder
from usam_jax.models.sam.prompt_encoder import PromptEncoder, Prompts
from usam_jax.utils.errors import UsageError

IMAGE_MEAN, IMAGE_STD = 0.1364736, 0.23238614  # of CARE's grey values in [0, 1]
PATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that tell one size of the model from another; `dim` is model.md's D."""

    width: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    dim: int = 256


SIZES = {
    "vit_b": Size(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Size(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Size(1280, 32, 16, (7, 15, 23, 31)),
    # For the demo and for tests; no weights exist.
    "small": Size(96, 4, 4, (1, 3), window=7, dim=128),
    "tiny": Size(96, 4, 4, (1, 3), window=7, dim=64),
}


@struct.dataclass
class Features:
    """What `encode` gives: the image embedding and the skips f0..f3 (none in the S baseline)."""

    embedding: Float[Array, "b g g d"]
    skips: tuple[Float[Array, "b _ _ _"], ...]


class USam(nn.Module):
    """U-SAM, or SAM with a class-wise decoder (`num_skips` None: the paper's baseline S).

    Images are float32[b h w], grey in [0, 1], h = w = `image_size`; normalisation is inside.
    Source: the paper's Fig. 2; Segment Anything.
    """

    size: Size
    num_classes: int
    image_size: int
    num_mask_tokens: int
    num_skips: int | None
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        size, u_shaped = self.size, self.num_skips is not None
        if u_shaped:
            self.backbone = ConvEncoder(size.dim, size.width, self.dtype)
        self.image_encoder = ImageEncoder(
            depth=size.depth,
            num_heads=size.num_heads,
            global_blocks=size.global_blocks,
            window=size.window,
            width=size.width,
            dim=size.dim,
            patch_size=0 if u_shaped else PATCH_SIZE,
            dtype=self.dtype,
            remat=self.remat,
        )
        self.prompt_encoder = PromptEncoder(size.dim, self.image_size)
        self.mask_decoder = MaskDecoder(
            self.num_classes, self.num_mask_tokens, self.num_skips, self.dtype
        )

    def encode(self, images: Float[Array, "b h w"], train: bool = False) -> Features:
        """Everything that depends on the image alone."""
        grey = (images.astype(jnp.float32) - IMAGE_MEAN) / IMAGE_STD
        x = grey[..., None].astype(self.dtype)
        if self.num_skips is None:
            return Features(self.image_encoder(x), ())
        *skips, f4 = self.backbone(x, train)
        return Features(self.image_encoder(f4), tuple(skips))

    def decode(
        self, features: Features, prompts: Prompts | None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        """Logits float32 of encoded images under `prompts`."""
        batch, grid = features.embedding.shape[:2]
        sparse, dense = self.prompt_encoder(prompts, batch)
        position = self.prompt_encoder.image_positions(grid)
        mask = prompts.token_mask() if prompts else None
        return self.mask_decoder(
            features.embedding, features.skips, sparse, mask, dense, position, train
        )

    def __call__(
        self, images: Float[Array, "b h w"], prompts: Prompts | None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        return self.decode(self.encode(images, train), prompts, train)


def make_model(config: ConfigDict) -> USam:
    """The model that `config.model` describes.

    Raises UsageError for a size, architecture or number that does not exist.
    """

    def check(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: found {config[field]!r}, expected {expected}")

    check(config.variant in SIZES, "variant", f"one of {', '.join(SIZES)}")
    check(config.name in ("usam", "sam"), "name", "usam or sam")
    check(config.dtype in ("float32", "bfloat16"), "dtype", "float32 or bfloat16")
    check(config.num_skips in range(5), "num_skips", "0 to 4")
    check(config.num_classes >= 2, "num_classes", "at least 2 (background counts)")
    check(
        config.image_size > 0 and config.image_size % PATCH_SIZE == 0,
        "image_size",
        f"a positive multiple of {PATCH_SIZE}",
    )
    check(config.num_mask_tokens >= 0, "num_mask_tokens", "0 (for D/8) or more")
    size = SIZES[config.variant]
    u_shaped = config.name == "usam"
    num_tokens = (config.num_mask_tokens or size.dim // 8) if u_shaped else config.num_classes
    return USam(
        size=size,
        num_classes=config.num_classes,
        image_size=config.image_size,
        num_mask_tokens=num_tokens,
        num_skips=config.num_skips if u_shaped else None,
        dtype=jnp.dtype(config.dtype),
        remat=config.get("remat", False),
    )


def init_variables(model: USam, key: Array) -> dict[str, Any]:
    """Fresh variables: `params`, `batch_stats` and `constants`, all float32."""
    # Random numbers of 300 shapes take longer to compile than to draw.
    options: Any = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda key: _init(model, key), compiler_options=options)(key)


def variable_shapes(model: USam) -> dict[str, Any]:
    """Shapes and types of what `init_variables` gives, nothing computed."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def _init(model: USam, key: Array) -> dict[str, Any]:
    images = jnp.zeros((1, model.image_size, model.image_size), jnp.float32)
    return dict(model.init(key, images, None))
