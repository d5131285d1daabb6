"""U-SAM, a U-shaped SAM: slice -> features -> logits."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models.common.conv_encoder import ConvEncoder
from usam_jax.models.common.layers import Dtype
from usam_jax.models.common.spec import ModelSpec, multiple_of
from usam_jax.models.sam.image_encoder import ImageEncoder
from usam_jax.models.sam.interactive import Interactive, with_points
from usam_jax.models.sam.mask_decoder import MaskDecoder
from usam_jax.models.sam.prompt_encoder import PromptEncoder, Prompts
from usam_jax.utils.errors import UsageError

PATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Variant:
    """Sizes of a variant: `width` of the image encoder, `dim` of the embedding and the decoder."""

    width: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    dim: int = 256


VARIANTS = {
    "vit_b": Variant(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Variant(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Variant(1280, 32, 16, (7, 15, 23, 31)),
    # For the demo and the tests, without published weights.
    "small": Variant(96, 4, 4, (1, 3), window=7, dim=128),
    "tiny": Variant(96, 2, 4, (1,), window=7, dim=64),
}


@struct.dataclass
class Features:
    """Output of `encode`: the image embedding and the skips f0 to f3 (none in the baseline S)."""

    embedding: Float[Array, "b g g d"]
    skips: tuple[Float[Array, "b _ _ _"], ...]


class USam(nn.Module):
    """U-SAM or, if `num_skips` is None, the paper's baseline S: SAM with a class-wise decoder.

    Images are float32[b h w], grey in [0, 1], with h = w = `image_size`. Returns logits
    float32[b h w k]. Source: the paper's Fig. 2; Segment Anything.
    """

    variant: Variant
    num_classes: int
    image_size: int
    num_mask_tokens: int
    num_skips: int | None
    dtype: Dtype = jnp.float32
    remat: bool = False
    interactive: bool = False
    deep_supervision: bool = False

    def setup(self) -> None:
        variant, u_shaped = self.variant, self.num_skips is not None
        if u_shaped:
            self.backbone = ConvEncoder(variant.dim, variant.width, self.dtype)
        self.image_encoder = ImageEncoder(
            **dataclasses.asdict(variant),
            patch_size=0 if u_shaped else PATCH_SIZE,
            dtype=self.dtype,
            remat=self.remat,
        )
        self.prompt_encoder = PromptEncoder(variant.dim, self.image_size)
        self.mask_decoder = MaskDecoder(
            self.num_classes,
            self.num_mask_tokens,
            self.num_skips,
            self.dtype,
            sow_coarse=self.deep_supervision,
        )
        if self.interactive:
            self.extension = Interactive(
                self.num_classes,
                variant.dim,
                self.image_size,
                *self.map_sizes(),
                self.dtype,
            )

    def map_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return channels and strides of the decoder's maps that clicks join, largest map first."""
        d = self.variant.dim
        if self.num_skips is None:
            return (d // 8, d // 4), (4, 8)
        dropped = 4 - self.num_skips
        channels, strides = (d // 8, d // 4, d // 2, d), (1, 2, 4, 8)
        return channels[dropped:], strides[dropped:]

    def encode(self, images: Float[Array, "b h w *c"], train: bool = False) -> Features:
        """Compute everything that depends on the images alone."""
        x = SPEC.input.normalize(images, self.dtype)
        if self.num_skips is None:
            return Features(self.image_encoder(x), ())
        *skips, f4 = self.backbone(x, train)
        return Features(self.image_encoder(f4), tuple(skips))

    def decode(
        self, features: Features, prompts: Prompts | None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        """Return logits float32[b h w k] of encoded images for `prompts`."""
        batch, grid = features.embedding.shape[:2]
        sparse, dense = self.prompt_encoder(prompts, batch)
        position = self.prompt_encoder.image_positions(grid)
        mask = prompts.token_mask() if prompts else None
        embedding, skips = features.embedding, features.skips
        hints = self.extension(with_points(prompts, batch)) if self.interactive else None
        if hints is not None:
            embedding = embedding + hints.embedding
            skips = self.join(skips, hints.maps)
        logits = self.mask_decoder(embedding, skips, sparse, mask, dense, position, train)
        return logits if hints is None else logits + hints.logits

    def join(self, skips: tuple[Any, ...], maps: tuple[Any, ...]) -> tuple[Any, ...]:
        """Add maps to the deepest skips of U-SAM. The decoder of S, without skips, adds them."""
        if self.num_skips is None:
            return maps
        unused = len(skips) - len(maps)
        joined = (skip + x for skip, x in zip(skips[unused:], maps, strict=True))
        return (*skips[:unused], *joined)

    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: Prompts | None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        return self.decode(self.encode(images, train), prompts, train)


def usam_config() -> ConfigDict:
    """Return the fields of `config.model` that U-SAM has of its own."""
    config = ConfigDict()
    # vit_b, vit_l or vit_h; small (demo) and tiny (tests) have no published weights.
    config.variant = "vit_b"
    config.num_skips = 4  # 0 to 4, deepest first
    # 0: dim / 8 = 32, as in the published code. The paper's equation (2) has num_classes.
    config.num_mask_tokens = 0
    config.remat = False  # recompute the transformer's activations in the backward pass
    config.interactive = False  # clicks with a class; needs config.prompts.kind = "interactive"
    # Weight in the loss of coarse logits from the transformer's own map; 0 leaves them out, as
    # published. Trained from nothing, the decoder else learns to ignore the transformer.
    config.deep_supervision = 0.0
    return config


def find_variant(config: ConfigDict) -> Variant:
    """Return the variant of `config.model`. Raises UsageError if it does not exist."""
    if config.variant not in VARIANTS:
        raise UsageError(
            f"config.model.variant: got {config.variant!r}, expected one of {', '.join(VARIANTS)}"
        )
    return VARIANTS[config.variant]


def build(config: ConfigDict) -> USam:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    variant = find_variant(config)
    if config.num_skips not in range(5):
        raise UsageError(f"config.model.num_skips: got {config.num_skips!r}, expected 0 to 4")
    if config.num_mask_tokens < 0:
        raise UsageError(
            f"config.model.num_mask_tokens: got {config.num_mask_tokens}, expected 0 or more"
        )
    if config.deep_supervision < 0:
        raise UsageError(
            f"config.model.deep_supervision: got {config.deep_supervision}, expected 0 or more"
        )
    if config.interactive and not config.num_skips:
        raise UsageError(
            "config.model.num_skips: got 0, expected 1 or more with config.model.interactive: "
            "clicks join the skips"
        )
    return USam(
        variant=variant,
        num_classes=config.num_classes,
        image_size=config.image_size,
        num_mask_tokens=config.num_mask_tokens or variant.dim // 8,
        num_skips=config.num_skips,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        interactive=config.interactive,
        deep_supervision=config.deep_supervision > 0,
    )


def depends(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of SPEC that follow from `config.model`: the weights of the outputs."""
    coarse = config.deep_supervision
    return {"loss_weights": {"logits": 1.0} | ({"mask_decoder/coarse": coarse} if coarse else {})}


SPEC = ModelSpec(
    config=usam_config,
    build=build,
    param_groups=(
        ("backbone/.*", "backbone"),
        ("image_encoder/.*", "image_encoder"),
        ("prompt_encoder/.*", None),
        ("mask_decoder/.*", "mask_decoder"),
        ("extension/.*", "interactive"),
    ),
    image_size=multiple_of(PATCH_SIZE),
    promptable=True,
    paper="2308.08283",
    code="github.com/kanydao/U-SAM@4e56d36",
    pretrained="sam_vit_b_01ec64.pth",
    versions=tuple({"variant": name} for name in ("vit_b", "vit_l", "vit_h")),
    small={"variant": "small"},
    depends=depends,
)
