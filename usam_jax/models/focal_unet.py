"""Focal-UNet: a U of blocks with focal modulation in place of attention."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import (
    DepthwiseConv,
    Dtype,
    LayerNorm,
    Mlp,
    PatchConv,
    conv,
    drop_path,
    linear,
)
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.common.up_block import Kernel
from usam_jax.models.swin_unet import EPSILON, INITS, PATCH_SIZE, PatchEmbed
from usam_jax.utils.errors import UsageError

KERNEL_SIZES = (3, 5, 7)  # of the focal levels


class FocalModulation(nn.Module):
    """Scale each pixel's query by its gated context at several focal levels."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        d, levels = x.shape[-1], len(KERNEL_SIZES)
        x = linear(2 * d + levels + 1, d, self.dtype, "f", **INITS)(x)
        query, context, gates = jnp.split(x, (d, 2 * d), axis=-1)
        *local, whole = jnp.split(gates, levels + 1, axis=-1)
        modulator: Any = 0.0
        for i, (size, gate) in enumerate(zip(KERNEL_SIZES, local, strict=True)):
            focal = DepthwiseConv(size, self.dtype, bias=False, name=f"focal_layers_{i}")
            context = ops.gelu(focal(context))
            modulator = modulator + context * gate
        modulator = modulator + ops.gelu(context.mean((1, 2), keepdims=True)) * whole
        modulator = conv(d, d, 1, self.dtype, "h")(modulator)
        return linear(d, d, self.dtype, "proj", **INITS)(query * modulator)


class Block(nn.Module):
    """Pre-norm block, whose branches are dropped by sample in training."""

    drop_rate: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w d"]:
        modulation = FocalModulation(self.dtype, name="modulation")
        mlp = Mlp(4 * x.shape[-1], ops.gelu, self.dtype, **INITS, name="mlp")
        drop = drop_path(self.drop_rate, train)
        x = x + drop(modulation(LayerNorm(EPSILON, name="norm1")(x)))
        return x + drop(mlp(LayerNorm(EPSILON, name="norm2")(x)))


class Downsample(nn.Module):
    """2x2 pixels to one of twice the channels, normalised."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        x = PatchConv(2 * x.shape[-1], 2, self.dtype, name="proj")(x)
        return LayerNorm(EPSILON, name="norm")(x)


class Upsample(nn.Module):
    """Each pixel to `scale` x `scale` pixels of `features` channels, normalised if `norm`."""

    scale: int
    features: int
    dtype: Dtype
    norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        shape = (self.scale, self.scale, x.shape[-1], self.features)
        fan_in = self.features * self.scale**2  # torch's counts the outputs
        x = ops.up_conv(x, *Kernel(shape, fan_in, self.dtype, name="proj")())
        return LayerNorm(EPSILON, name="norm")(x) if self.norm else x


class Stage(nn.Module):
    """Blocks of one size, then the module that `end` makes, if any."""

    drop_rates: Sequence[float]
    dtype: Dtype
    end: Callable[[], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b i j e"]:
        for i, rate in enumerate(self.drop_rates):
            x = Block(rate, self.dtype, name=f"blocks_{i}")(x, train)
        return self.end()(x) if self.end else x


class FocalUnet(nn.Module):
    """Focal-UNet: FocalNet's encoder, and a decoder with one block per stage.

    Images are float32[b h w], grey in [0, 1], with h and w multiples of the deepest stage's pixel
    (32 by default). Returns logits float32[b h w k].
    Source: Naderi et al., 2022, as in github.com/givkashi/Focal-Unet. That code differs from the
    paper, which takes skips after a stage's blocks.
    """

    num_classes: int
    width: int
    depths: Sequence[int]
    drop_path: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        last, dtype, width = len(self.depths) - 1, self.dtype, self.width
        rates = [float(x) for x in np.linspace(0, self.drop_path, sum(self.depths))]

        x = PatchEmbed(width, dtype, name="patch_embed")(SPEC.input.normalize(images, dtype))
        skips = []
        for level, depth in enumerate(self.depths):
            skips.append(x)
            start = sum(self.depths[:level])
            level_rates = rates[start : start + depth]
            down = partial(Downsample, dtype, name="downsample") if level < last else None
            x = Stage(level_rates, dtype, down, name=f"layers_{level}")(x, train)
        x = LayerNorm(EPSILON, name="norm")(x)
        x = Upsample(2, x.shape[-1] // 2, dtype, name="layers_up_0")(x)
        for level in range(last - 1, -1, -1):
            d, up = x.shape[-1], last - level
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = linear(d, 2 * d, dtype, f"concat_back_dim_{up}", **INITS)(x)
            level_rates = rates[level : level + 1]  # as published, not the encoder's of this level
            end = partial(Upsample, 2, d // 2, dtype, name="upsample") if level else None
            x = Stage(level_rates, dtype, end, name=f"layers_up_{up}")(x, train)
        x = LayerNorm(EPSILON, name="norm_up")(x)
        x = Upsample(PATCH_SIZE, width, dtype, norm=False, name="patch_expand")(x)
        output = conv(self.num_classes, width, 7, dtype, "output", bias=False)
        return output(x).astype(jnp.float32)


def focal_unet_config() -> ConfigDict:
    """Return the fields of `config.model` that Focal-UNet has of its own."""
    config = ConfigDict()
    config.width = 96  # channels of the first stage, doubled at each further one
    config.depths = (4, 4, 4, 4)  # blocks of each stage of the encoder
    config.drop_path = 0.2  # rate at which the last block's branches are dropped; 0 in the first
    return config


def check(config: ConfigDict) -> None:
    """Raise UsageError if a field of `config.model` is invalid."""

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: got {config[field]!r}, expected {expected}")

    require(config.width >= 1, "width", "1 or more")
    deep = len(config.depths) >= 2 and min(config.depths) >= 1
    require(deep, "depths", "two or more stages of 1 block or more")
    require(0 <= config.drop_path < 1, "drop_path", "0 to below 1")


def build(config: ConfigDict) -> FocalUnet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    check(config)
    return FocalUnet(
        num_classes=config.num_classes,
        width=config.width,
        depths=tuple(config.depths),
        drop_path=config.drop_path,
        dtype=jnp.dtype(config.dtype),
    )


def depends(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of SPEC that follow from `config.model`: whole pixels at each stage."""
    check(config)
    return {"image_size": multiple_of(PATCH_SIZE * 2 ** (len(config.depths) - 1))}


SPEC = ModelSpec(
    config=focal_unet_config,
    build=build,
    stochastic=True,
    paper="2212.09263",
    code="github.com/givkashi/Focal-Unet@aed3779",
    pretrained="focalnet_tiny_lrf.pth",
    small={"width": 16, "depths": (1, 1)},
    depends=depends,
)
