"""SAMed: SAM with a class-wise decoder, and LoRA in its frozen image encoder."""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models.common.layers import Dtype, torch_uniform
from usam_jax.models.common.spec import ModelSpec, refuse_prompts
from usam_jax.models.sam.image_encoder import ImageEncoder
from usam_jax.models.sam.mask_decoder import MaskDecoder
from usam_jax.models.sam.prompt_encoder import PromptEncoder
from usam_jax.models.usam import PATCH_SIZE, Variant, find_variant
from usam_jax.models.usam import SPEC as USAM
from usam_jax.utils.errors import UsageError


class Unread(nn.Module):
    """Parameters that SAMed's checkpoints hold and no output depends on, in torch's layout.

    SAMed's own code reads a checkpoint only if it has them: SAM's encoder of mask prompts, and the
    head that predicts the quality of each mask.
    """

    dim: int
    num_classes: int

    @nn.compact
    def __call__(self) -> None:
        for name, shape in self.shapes.items():
            init = torch_uniform(math.prod(shape[1:]))
            self.param(f"{name}_weight", init if shape[1:] else nn.initializers.ones, shape)
            self.param(f"{name}_bias", init if shape[1:] else nn.initializers.zeros, shape[:1])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the weight of each layer, of which those with one axis are norms."""
        d, k = self.dim, self.num_classes
        return {
            "mask_downscaling_0": (4, 1, 2, 2),
            "mask_downscaling_1": (4,),
            "mask_downscaling_3": (16, 4, 2, 2),
            "mask_downscaling_4": (16,),
            "mask_downscaling_6": (d, 16, 1, 1),
            "iou_prediction_head_0": (d, d),
            "iou_prediction_head_1": (d, d),
            "iou_prediction_head_2": (k, d),
        }


class Samed(nn.Module):
    """SAMed without prompts.

    Images are float32[b h w], grey in [0, 1], with h = w = `image_size`. Returns logits
    float32[b h w k] and sows those at 1/4 size, from which the full size is interpolated and whose
    loss is the published one. Source: Zhang and Liu, 2023; github.com/hitachinsk/SAMed.
    """

    variant: Variant
    num_classes: int
    image_size: int
    rank: int
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        variant = self.variant
        encoder = ImageEncoder(
            **dataclasses.asdict(variant),
            patch_size=PATCH_SIZE,
            dtype=self.dtype,
            remat=self.remat,
            lora_rank=self.rank,
            name="image_encoder",
        )
        embedding = encoder(SPEC.input.normalize(images, self.dtype))
        prompt_encoder = PromptEncoder(variant.dim, self.image_size, name="prompt_encoder")
        batch, grid = embedding.shape[:2]
        sparse, dense = prompt_encoder(None, batch)
        position = prompt_encoder.image_positions(grid)
        Unread(variant.dim, self.num_classes, name="unread")()
        k = self.num_classes
        decoder = MaskDecoder(k, k, None, self.dtype, sow_low_res=True, name="mask_decoder")
        return decoder(embedding, (), sparse, None, dense, position, train)


def samed_config() -> ConfigDict:
    """Return the fields of `config.model` that SAMed has of its own."""
    config = ConfigDict()
    # vit_b (SAMed), vit_l or vit_h (SAMed_h); small (demo) and tiny (tests) have no published
    # weights.
    config.variant = "vit_b"
    config.rank = 4  # of LoRA's matrices
    config.remat = False  # recompute the transformer's activations in the backward pass
    return config


def build(config: ConfigDict) -> Samed:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    if config.rank < 1:
        raise UsageError(f"config.model.rank: got {config.rank}, expected 1 or more")
    return Samed(
        variant=find_variant(config),
        num_classes=config.num_classes,
        image_size=config.image_size,
        rank=config.rank,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


SPEC = ModelSpec(
    config=samed_config,
    build=build,
    param_groups=(
        (r"image_encoder/blocks_\d+/attn/qkv/linear_[ab]_[qv]/kernel", "lora"),
        (r"prompt_encoder/no_mask_embed|mask_decoder/.*", "mask_decoder"),
        # Frozen, or without a gradient since there are no prompts.
        (r"(image_encoder|prompt_encoder|unread)/.*", None),
    ),
    loss_weights={"logits": 0.0, "mask_decoder/low_res": 1.0},
    label_grid="end_points",
    image_size=USAM.image_size,
    paper="2304.13785",
    code="github.com/hitachinsk/SAMed@e351840",
    pretrained=USAM.pretrained,
    versions=USAM.versions,
    small=USAM.small,
)
