"""TransUNet: a ResNet, a vision transformer on its deepest map, and a convolutional decoder."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import (
    ConvUnit,
    Dtype,
    InstanceNorm,
    LayerNorm,
    Mlp,
    PatchConv,
    conv,
    linear,
    torch_uniform,
)
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.common.upsample import upsample
from usam_jax.utils.errors import UsageError

EPSILON = 1e-6  # of GroupNorm and LayerNorm
GROUPS = 32  # of GroupNorm


class StdConv(nn.Module):
    """Padded square convolution whose kernel has mean 0 and variance 1 for each output channel.

    With `grey`, the input is a grey image and the kernel is for three equal channels, which may be
    summed only after the kernel is standardised.
    """

    features: int
    size: int
    dtype: Dtype
    stride: int = 1
    grey: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        grey = self.grey and x.shape[-1] == 1  # the slices of a window are channels of their own
        shape = (self.size, self.size, 3 if grey else x.shape[-1], self.features)
        kernel = self.param("kernel", torch_uniform(math.prod(shape[:3])), shape)
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) + 1e-5)
        kernel = kernel.sum(2, keepdims=True) if grey else kernel
        padding = self.size // 2
        return ops.convolve(x, kernel.astype(self.dtype), stride=self.stride, padding=padding)


class GroupNorm(nn.Module):
    """Normalisation over the pixels and channels of each image and group of channels."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        groups = x.reshape(*x.shape[:3], GROUPS, d // GROUPS)
        scale, bias = (y.reshape(groups.shape[3:]) for y in (scale, bias))
        return ops.normalise(groups, scale, bias, axes=(1, 2, 4), epsilon=EPSILON)[0].reshape(
            x.shape
        )


class Root(nn.Module):
    """First convolution of the ResNet, of a grey image to half its size."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j e"]:
        x = StdConv(self.features, 7, self.dtype, stride=2, grey=True, name="conv")(x)
        return ops.relu(GroupNorm(name="gn")(x))


class Unit(nn.Module):
    """Residual bottleneck of the ResNet, whose first one in a block projects its input."""

    features: int
    stride: int
    project: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        middle, dtype = self.features // 4, self.dtype
        y = StdConv(middle, 1, dtype, name="conv1")(x)
        y = ops.relu(GroupNorm(name="gn1")(y))
        y = StdConv(middle, 3, dtype, stride=self.stride, name="conv2")(y)
        y = ops.relu(GroupNorm(name="gn2")(y))
        y = GroupNorm(name="gn3")(StdConv(self.features, 1, dtype, name="conv3")(y))
        if self.project:
            x = StdConv(self.features, 1, dtype, stride=self.stride, name="downsample")(x)
            x = InstanceNorm(name="gn_proj")(x)
        return ops.relu(x + y)


class ResBlock(nn.Module):
    """Units of one size, the first of which has the stride."""

    num_units: int
    features: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        for i in range(self.num_units):
            stride = self.stride if i == 0 else 1
            x = Unit(self.features, stride, i == 0, self.dtype, name=f"unit{i + 1}")(x)
        return x


class Embeddings(nn.Module):
    """The pixels, or patches, of a map to tokens with learned positions."""

    width: int
    dropout: float
    dtype: Dtype
    patch_size: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b t e"]:
        x = PatchConv(self.width, self.patch_size, self.dtype, name="patch_embeddings")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        positions = self.param("position_embeddings", nn.initializers.zeros, (1, *x.shape[1:]))
        x = x + positions.astype(self.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class Attention(nn.Module):
    """Multi-head self-attention of all tokens."""

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        b, t, d = x.shape
        q, k, v = (
            linear(d, d, self.dtype, name)(x).reshape(b, t, self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        x = ops.self_attention(q, k, v, None).reshape(b, t, d)
        return linear(d, d, self.dtype, "out")(x)


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    num_heads: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], train: bool) -> Float[Array, "b t d"]:
        attention = Attention(self.num_heads, self.dtype, name="attn")
        mlp = Mlp(
            4 * x.shape[-1],
            ops.gelu,
            self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
            dropout=self.dropout,
            name="ffn",
        )
        x = x + attention(LayerNorm(EPSILON, name="attention_norm")(x))
        return x + mlp(LayerNorm(EPSILON, name="ffn_norm")(x), train)


class DecoderBlock(nn.Module):
    """Upsampling to twice the size, concatenation with a skip if there is one, two conv units."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], skip: Float[Array, "b i j s"] | None, train: bool
    ) -> Float[Array, "b i j f"]:
        x = upsample(x)
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        x = ConvUnit(self.features, self.dtype, bias=False, name="conv1")(x, train)
        return ConvUnit(self.features, self.dtype, bias=False, name="conv2")(x, train)


class TransUNet(nn.Module):
    """TransUNet with three skips, as R50-ViT-B_16 in the published code.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 16. The table of positions fits
    the size for which the variables were made. Returns logits float32[b h w k].
    Source: Chen et al., 2021, as in github.com/Beckschen/TransUNet.
    """

    num_classes: int
    root_width: int
    units: Sequence[int]
    width: int
    depth: int
    num_heads: int
    decoder_widths: Sequence[int]
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        dtype = self.dtype
        root = Root(self.root_width, dtype, name="root")(SPEC.input.normalize(images, dtype))
        x, skips = ops.max_pool(root, window=3), [root]
        for i, num_units in enumerate(self.units):
            features, stride = 4 * self.root_width * 2**i, 1 if i == 0 else 2
            x = ResBlock(num_units, features, stride, dtype, name=f"block{i + 1}")(x)
            skips.append(x)
        # The pool without padding leaves the first block's map one pixel short of half the root's.
        skips[1] = jnp.pad(skips[1], ((0, 0), (0, 1), (0, 1), (0, 0)))
        b, h, w, _ = x.shape
        x = Embeddings(self.width, self.dropout, dtype, name="embeddings")(x, train)
        for i in range(self.depth):
            x = Layer(self.num_heads, self.dropout, dtype, name=f"layer_{i}")(x, train)
        x = LayerNorm(EPSILON, name="encoder_norm")(x).reshape(b, h, w, self.width)
        first, *widths = self.decoder_widths
        x = ConvUnit(first, dtype, bias=False, name="conv_more")(x, train)
        for i, (features, skip) in enumerate(zip(widths, [*skips[2::-1], None], strict=True)):
            x = DecoderBlock(features, dtype, name=f"blocks_{i}")(x, skip, train)
        head = conv(self.num_classes, x.shape[-1], 3, dtype, "segmentation_head")
        return head(x).astype(jnp.float32)


def transunet_config() -> ConfigDict:
    """Return the fields of `config.model` that TransUNet has of its own."""
    config = ConfigDict()
    config.root_width = 64  # channels of the ResNet at half size; its blocks have 4, 8 and 16 times
    config.units = (3, 4, 9)  # bottlenecks of the ResNet's three blocks
    config.width = 768  # channels of a token
    config.depth = 12  # layers of the transformer
    config.num_heads = 12
    config.decoder_widths = (512, 256, 128, 64, 16)  # channels from 1/16 to full size
    config.dropout = 0.1  # of tokens and in the transformer's MLPs
    return config


def build(config: ConfigDict) -> TransUNet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: got {config[field]!r}, expected {expected}")

    def positive(field: str, length: int) -> None:
        ok = len(config[field]) == length and min(config[field]) >= 1
        require(ok, field, f"{length} numbers, 1 or more each")

    grouped = config.root_width >= 1 and config.root_width % GROUPS == 0
    require(grouped, "root_width", f"a positive multiple of {GROUPS}")
    positive("units", 3)
    positive("decoder_widths", 5)
    require(config.num_heads >= 1, "num_heads", "1 or more")
    headed = config.width >= 1 and config.width % config.num_heads == 0
    require(headed, "width", f"a positive multiple of num_heads, {config.num_heads}")
    require(config.depth >= 1, "depth", "1 or more")
    require(0 <= config.dropout < 1, "dropout", "0 to below 1")
    return TransUNet(
        num_classes=config.num_classes,
        root_width=config.root_width,
        units=tuple(config.units),
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        decoder_widths=tuple(config.decoder_widths),
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


SMALL: dict[str, Any] = {
    "root_width": 32,
    "units": (1, 1, 1),
    "width": 64,
    "depth": 2,
    "num_heads": 2,
    "decoder_widths": (32, 16, 16, 8, 8),
}

SPEC = ModelSpec(
    config=transunet_config,
    build=build,
    image_size=multiple_of(16),
    stochastic=True,
    paper="2102.04306",
    code="github.com/Beckschen/TransUNet@02ef001",
    pretrained="R50+ViT-B_16.npz",
    small=SMALL,
)
