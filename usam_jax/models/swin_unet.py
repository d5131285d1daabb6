"""Swin-Unet: a U of transformer blocks with attention in shifted windows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import (
    Dtype,
    GreyConv,
    Init,
    LayerNorm,
    Mlp,
    conv,
    drop_path,
    linear,
)
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.common.windows import window_partition, window_unpartition
from usam_jax.utils.errors import UsageError

PATCH_SIZE = 4
EPSILON = 1e-5  # of every LayerNorm
MASKED = -100.0  # added to the logits of tokens that do not see each other, as published

# The published initial values of linear layers; those of convolutions are torch's.
INITS: dict[str, Any] = {
    "kernel_init": nn.initializers.normal(0.02),
    "bias_init": nn.initializers.zeros,
}


def relative_index(window: int) -> np.ndarray:
    """Row int[t t] of the table of biases for each query and key of a window (t = window^2).

    The row is `(y_q - y_k + window - 1) (2 window - 1) + (x_q - x_k + window - 1)`.
    """
    y, x = np.indices((window, window)).reshape(2, -1)
    offsets = (z[:, None] - z + window - 1 for z in (y, x))
    return np.ravel_multi_index(tuple(offsets), (2 * window - 1, 2 * window - 1))


def shift_mask(height: int, width: int, window: int, shift: int) -> Float[Array, "w t t"]:
    """What is added to the logits of each window of a map that was rolled by `-shift`.

    The roll joins opposite sides of the map. Tokens from different sides do not see each other.
    """
    bands = (np.digitize(np.arange(n), (n - window, n - shift)) for n in (height, width))
    rows, columns = bands
    regions = jnp.asarray(3 * rows[:, None] + columns, jnp.float32)[None, :, :, None]
    regions = window_partition(regions, window).reshape(-1, window * window)
    return jnp.where(regions[:, :, None] == regions[:, None], 0.0, MASKED)


class WindowAttention(nn.Module):
    """Multi-head self-attention in square windows of a map, with learned relative positions.

    The map is rolled by `-shift` along h and w first, and back afterwards.
    """

    head_dim: int
    window: int
    shift: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        shape, d, t = x.shape, x.shape[-1], self.window**2
        heads = d // self.head_dim
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = window_partition(x, self.window).reshape(-1, t, d)
        qkv = linear(3 * d, d, self.dtype, "qkv", **INITS)(x)
        q, k, v = (y.reshape(-1, t, heads, self.head_dim) for y in jnp.split(qkv, 3, axis=-1))
        init, rows = nn.initializers.normal(0.02), (2 * self.window - 1) ** 2
        table = self.param("relative_position_bias_table", init, (rows, heads))
        bias = table[relative_index(self.window)].transpose(2, 0, 1)[None]
        if self.shift:
            bias += shift_mask(shape[1], shape[2], self.window, self.shift)[:, None]
        x = ops.self_attention(q, k, v, bias).reshape(-1, t, d)
        x = linear(d, d, self.dtype, "proj", **INITS)(x)
        x = window_unpartition(x.reshape(-1, self.window, self.window, d), shape)
        return jnp.roll(x, (self.shift, self.shift), axis=(1, 2)) if self.shift else x


class Block(nn.Module):
    """Pre-norm transformer block, whose branches are dropped by sample in training.

    Windows are shifted by half their size if `shifted`, unless one window is the whole map.
    """

    head_dim: int
    window: int
    shifted: bool
    drop_rate: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w d"]:
        shift = self.window // 2 if self.shifted and min(x.shape[1:3]) > self.window else 0
        attention = WindowAttention(self.head_dim, self.window, shift, self.dtype, name="attn")
        mlp = Mlp(4 * x.shape[-1], ops.gelu, self.dtype, **INITS, name="mlp")
        drop = drop_path(self.drop_rate, train)
        x = x + drop(attention(LayerNorm(EPSILON, name="norm1")(x)))
        return x + drop(mlp(LayerNorm(EPSILON, name="norm2")(x)))


class PatchMerging(nn.Module):
    """2x2 pixels to one of twice the channels."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        b, h, w, d = x.shape
        # Channels (column, row, d), as published.
        x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
        x = LayerNorm(EPSILON, name="norm")(x.reshape(b, h // 2, w // 2, 4 * d))
        return linear(2 * d, 4 * d, self.dtype, "reduction", bias=False, **INITS)(x)


class PatchExpanding(nn.Module):
    """Each pixel to `scale` x `scale` pixels of `features` channels."""

    scale: int
    features: int
    dtype: Dtype
    kernel_init: Init = INITS["kernel_init"]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        features, d = self.features * self.scale**2, x.shape[-1]
        x = linear(features, d, self.dtype, "expand", False, self.kernel_init)(x)
        x = ops.pixel_shuffle(x, (self.scale, self.scale))
        return LayerNorm(EPSILON, name="norm")(x)


class Stage(nn.Module):
    """Blocks of one size, every second one shifted, then the module that `end` makes, if any."""

    drop_rates: Sequence[float]
    head_dim: int
    window: int
    dtype: Dtype
    end: Callable[[], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b i j e"]:
        for i, rate in enumerate(self.drop_rates):
            block = Block(
                self.head_dim, self.window, i % 2 == 1, rate, self.dtype, name=f"blocks_{i}"
            )
            x = block(x, train)
        return self.end()(x) if self.end else x


class PatchEmbed(nn.Module):
    """Non-overlapping patches of the grey image to normalised tokens."""

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        x = GreyConv(self.width, PATCH_SIZE, PATCH_SIZE, self.dtype, name="proj")(x)
        return LayerNorm(EPSILON, name="norm")(x)


class SwinUnet(nn.Module):
    """Swin-Unet: the encoder is Swin, the decoder mirrors it, and skips are the stages' inputs.

    Images are float32[b h w], grey in [0, 1], with h and w multiples of the deepest stage's window
    in pixels (224 by default). Returns logits float32[b h w k].
    Source: Cao et al., ECCV workshops 2022, as in github.com/HuCaoFighting/Swin-Unet. That code
    differs from the paper, which takes skips after a stage's blocks.
    """

    num_classes: int
    width: int
    head_dim: int
    depths: Sequence[int]
    window: int
    drop_path: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        last, dtype = len(self.depths) - 1, self.dtype
        drop_rates = np.linspace(0, self.drop_path, sum(self.depths))
        rates = np.split(drop_rates, np.cumsum(self.depths)[:-1])

        def stage(level: int, name: str, end: Callable[[], nn.Module] | None = None) -> Stage:
            rates_of_level = tuple(map(float, rates[level]))
            return Stage(rates_of_level, self.head_dim, self.window, dtype, end, name=name)

        x = PatchEmbed(self.width, dtype, name="patch_embed")(SPEC.input.normalize(images, dtype))
        skips = []
        for level in range(last + 1):
            skips.append(x)
            merging = functools.partial(PatchMerging, dtype, name="downsample")
            x = stage(level, f"layers_{level}", merging if level < last else None)(x, train)
        x = LayerNorm(EPSILON, name="norm")(x)
        x = PatchExpanding(2, x.shape[-1] // 2, dtype, name="layers_up_0")(x)
        for level in range(last - 1, -1, -1):
            d, up = x.shape[-1], last - level
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = linear(d, 2 * d, dtype, f"concat_back_dim_{up}", **INITS)(x)
            expanding = functools.partial(PatchExpanding, 2, d // 2, dtype, name="upsample")
            x = stage(level, f"layers_up_{up}", expanding if level else None)(x, train)
        x = LayerNorm(EPSILON, name="norm_up")(x)
        x = PatchExpanding(PATCH_SIZE, self.width, dtype, name="up")(x)
        output = conv(self.num_classes, self.width, 1, dtype, "output", bias=False)
        return output(x).astype(jnp.float32)


def swin_unet_config() -> ConfigDict:
    """Return the fields of `config.model` that Swin-Unet has of its own."""
    config = ConfigDict()
    config.width = 96  # channels of the first stage, doubled at each further one
    config.head_dim = 32  # channels of an attention head
    config.depths = (2, 2, 2, 2)  # blocks of each stage; the decoder mirrors all but the last
    config.window = 7  # side of a window, in tokens
    config.drop_path = 0.2  # rate at which the last block's branches are dropped; 0 in the first
    return config


def check(config: ConfigDict) -> None:
    """Raise UsageError if a field of `config.model` is invalid."""

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: got {config[field]!r}, expected {expected}")

    require(config.head_dim >= 1, "head_dim", "1 or more")
    divisible = config.width >= 1 and config.width % config.head_dim == 0
    require(divisible, "width", f"a positive multiple of head_dim, {config.head_dim}")
    require(config.width % 2 == 0, "width", "an even number")
    deep = len(config.depths) >= 2 and min(config.depths) >= 1
    require(deep, "depths", "two or more stages of 1 block or more")
    require(config.window >= 2, "window", "2 or more")
    require(0 <= config.drop_path < 1, "drop_path", "0 to below 1")


def build(config: ConfigDict) -> SwinUnet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    check(config)
    return SwinUnet(
        num_classes=config.num_classes,
        width=config.width,
        head_dim=config.head_dim,
        depths=tuple(config.depths),
        window=config.window,
        drop_path=config.drop_path,
        dtype=jnp.dtype(config.dtype),
    )


def depends(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of SPEC that follow from `config.model`: whole windows at each stage."""
    check(config)
    return {"image_size": multiple_of(PATCH_SIZE * 2 ** (len(config.depths) - 1) * config.window)}


SPEC = ModelSpec(
    config=swin_unet_config,
    build=build,
    stochastic=True,
    paper="2105.05537",
    code="github.com/HuCaoFighting/Swin-Unet@f48f623",
    pretrained="swin_tiny_patch4_window7_224.pth",
    small={"width": 32, "head_dim": 16, "depths": (2, 2), "window": 4, "image_size": 96},
    depends=depends,
)
