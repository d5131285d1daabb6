"""V-Net in 2-D with ELU: 5x5 convolutions in residual stages, strided instead of pooled."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import HE_NORMAL, BatchNorm, Dtype, conv
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.common.up_block import up_kernel
from usam_jax.utils.errors import UsageError

# By level, from half size (1) to 1/16 (4).
DOWN_UNITS = (1, 2, 3, 2)
UP_UNITS = (1, 1, 2, 2)
FIRST_DEEP = 3  # level from which on the map goes through dropout, and not only its skip

he_conv = functools.partial(conv, kernel_init=HE_NORMAL, bias_init=nn.initializers.zeros)


class Activation(nn.Module):
    """ELU, or PReLU with a slope for each channel."""

    prelu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b *s d"]) -> Float[Array, "b *s d"]:
        if not self.prelu:
            return jax.nn.elu(x)
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class Unit(nn.Module):
    """Convolution with bias, BatchNorm, activation."""

    features: int
    prelu: bool
    dtype: Dtype
    size: int = 5
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b *s d"], train: bool) -> Float[Array, "b *o e"]:
        d, dims = x.shape[-1], x.ndim - 2
        x = he_conv(self.features, d, self.size, self.dtype, "conv", dims, self.stride)(x)
        return Activation(self.prelu, name="act")(BatchNorm(name="norm")(x, train))


class UpUnit(nn.Module):
    """Transposed convolution of size and stride 2, BatchNorm, activation."""

    features: int
    prelu: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b *s d"], train: bool) -> Float[Array, "b *o e"]:
        up = up_kernel(x.shape[-1], self.features, self.dtype, "conv", x.ndim - 2)
        x = ops.up_conv(x, *up())
        return Activation(self.prelu, name="act")(BatchNorm(name="norm")(x, train))


class Stem(nn.Module):
    """Convolution and BatchNorm of the image, plus the image in each channel, activation.

    Of neighbouring slices in channels, the middle one is added.
    """

    features: int
    prelu: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"], train: bool) -> Float[Array, "b *s e"]:
        c = x.shape[-1]
        y = he_conv(self.features, c, 5, self.dtype, "conv", x.ndim - 2)(x)
        y = BatchNorm(name="norm")(y, train) + x[..., c // 2 : c // 2 + 1]
        return Activation(self.prelu, name="act")(y)


class Down(nn.Module):
    """Strided unit, dropout, then units that keep the channels, added to the map before dropout."""

    depth: int
    features: int
    dropout: float
    prelu: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b *s d"], train: bool) -> Float[Array, "b *o e"]:
        e, prelu, dtype = self.features, self.prelu, self.dtype
        shortcut = Unit(e, prelu, dtype, size=2, stride=2, name="down")(x, train)
        x = drop_channels(shortcut, self.dropout, train)
        for i in range(self.depth):
            x = Unit(e, prelu, dtype, name=f"unit_{i}")(x, train)
        return Activation(prelu, name="act")(x + shortcut)


class Up(nn.Module):
    """Upsampling unit and the skip after dropout, then units that keep the channels, plus both.

    `dropout` has the rates of the map and of its skip. The skip has half of the `features`.
    """

    depth: int
    features: int
    dropout: tuple[float, float]
    prelu: bool
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *s d"], skip: Float[Array, "b *o f"], train: bool
    ) -> Float[Array, "b *o e"]:
        e, prelu, dtype = self.features, self.prelu, self.dtype
        x, skip = (drop_channels(y, p, train) for y, p in zip((x, skip), self.dropout, strict=True))
        x = UpUnit(e // 2, prelu, dtype, name="up")(x, train)
        shortcut = x = jnp.concatenate([x, skip], axis=-1)
        for i in range(self.depth):
            x = Unit(e, prelu, dtype, name=f"unit_{i}")(x, train)
        return Activation(prelu, name="act")(x + shortcut)


class Head(nn.Module):
    """Unit with a channel for each class, then a convolution of size 1."""

    num_classes: int
    prelu: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b *s d"], train: bool) -> Float[Array, "b *s k"]:
        k = self.num_classes
        x = Unit(k, self.prelu, self.dtype, name="unit")(x, train)
        return he_conv(k, k, 1, self.dtype, "point", x.ndim - 2)(x)


def drop_channels(x: Float[Array, "b *s d"], rate: float, train: bool) -> Float[Array, "b *s d"]:
    """Set whole channels of a sample to 0 at this rate if `train`, within a module's call."""
    return nn.Dropout(rate, broadcast_dims=range(1, x.ndim - 1), deterministic=not train)(x)


class VNet(nn.Module):
    """V-Net with layers of 2 or 3 `dims`.

    Images are float32[b h w] or windows float32[b d h w], grey in [0, 1], with sides that are
    multiples of 16; returns logits float32[b h w k] or float32[b d h w k].
    Source: Milletari, Navab, Ahmadi, 3DV 2016, as in github.com/mattmacy/vnet.pytorch. That code
    differs from the paper: it has BatchNorm and dropout, and fewer units at the deep levels. Unlike
    that code, evaluation uses running statistics.
    """

    num_classes: int
    width: int
    dropout: float
    prelu: bool
    dtype: Dtype = jnp.float32
    dims: int = 2

    @nn.compact
    def __call__(
        self, images: Float[Array, "b ..."], prompts: None = None, train: bool = False
    ) -> Float[Array, "b ... k"]:
        refuse_prompts(prompts)
        rate, rest = self.dropout, (self.prelu, self.dtype)
        levels = range(1, len(DOWN_UNITS) + 1)
        x = SPEC.input.normalize(images, self.dtype, self.dims)
        x, skips = Stem(self.width, *rest, name="stem")(x, train), []
        for level, depth in zip(levels, DOWN_UNITS, strict=True):
            skips.append(x)
            features, deep = self.width * 2**level, level >= FIRST_DEEP
            x = Down(depth, features, rate * deep, *rest, name=f"down{level}")(x, train)
        for level, depth in reversed([*zip(levels, UP_UNITS, strict=True)]):
            features, deep = self.width * 2**level, level >= FIRST_DEEP
            up = Up(depth, features, (rate * deep, rate), *rest, name=f"up{level}")
            x = up(x, skips.pop(), train)
        return Head(self.num_classes, *rest, name="head")(x, train).astype(jnp.float32)


def vnet_config() -> ConfigDict:
    """Return the fields of `config.model` that V-Net has of its own."""
    config = ConfigDict()
    config.width = 16  # channels at full size, doubled on each of the four levels below
    config.dropout = 0.5  # of whole channels of skips and of deep maps
    return config


def build(config: ConfigDict, prelu: bool = False, dims: int = 2) -> VNet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    if config.width < 1:
        raise UsageError(f"config.model.width: got {config.width}, expected 1 or more")
    if not 0 <= config.dropout < 1:
        raise UsageError(f"config.model.dropout: got {config.dropout}, expected 0 to below 1")
    dtype = jnp.dtype(config.dtype)
    return VNet(config.num_classes, config.width, config.dropout, prelu, dtype, dims)


SPEC = ModelSpec(
    config=vnet_config,
    build=build,
    image_size=multiple_of(2 ** len(DOWN_UNITS)),
    stochastic=True,
    paper="1606.04797",
    code="github.com/mattmacy/vnet.pytorch@a00c8ea",
    small={"width": 4},
)
