"""ResUNet++: residual units, squeeze-and-excitation, dilated pyramids and attention."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import (
    HE_NORMAL,
    BatchNorm,
    ConvUnit,
    Dtype,
    GreyConv,
    conv,
    linear,
)
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.utils.errors import UsageError

LEVELS = 4
DILATIONS = (6, 12, 18)
REDUCTION = 16  # of the channels in squeeze-and-excitation


class PreActConv(nn.Module):
    """BatchNorm, ReLU, convolution with bias."""

    features: int
    dtype: Dtype
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b i j e"]:
        d = x.shape[-1]
        x = ops.relu(BatchNorm(name="norm")(x, train))
        return conv(self.features, d, self.size, self.dtype, "conv", stride=self.stride)(x)


class ResidualConv(nn.Module):
    """Two pre-activated convolutions plus a convolution with BatchNorm of the input."""

    features: int
    dtype: Dtype
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b i j e"]:
        e, stride = self.features, self.stride
        skip = conv(e, x.shape[-1], 3, self.dtype, "skip_conv", stride=stride)(x)
        x = PreActConv(e, self.dtype, stride=stride, name="unit_0")(x, train)
        x = PreActConv(e, self.dtype, name="unit_1")(x, train)
        return x + BatchNorm(name="skip_norm")(skip, train)


class Stem(nn.Module):
    """Conv unit of the grey image and a further convolution."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w e"]:
        x = ConvUnit(self.features, self.dtype, grey=True, name="unit")(x, train)
        return conv(self.features, self.features, 3, self.dtype, "conv")(x)


class SqueezeExcite(nn.Module):
    """Scale each channel by a factor in (0, 1) computed from the means of all channels."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        d = x.shape[-1]
        hidden = max(1, d // REDUCTION)
        y = x.mean((1, 2))
        y = ops.relu(linear(hidden, d, self.dtype, "fc_0", bias=False)(y))
        y = jax.nn.sigmoid(linear(d, hidden, self.dtype, "fc_2", bias=False)(y))
        return x * y[:, None, None]


class DilatedUnit(nn.Module):
    """Dilated 3x3 convolution with bias, ReLU, BatchNorm, in this order."""

    features: int
    dilation: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        d = x.shape[-1]
        unit = conv(
            self.features, d, 3, self.dtype, "conv", dilation=self.dilation, kernel_init=HE_NORMAL
        )
        return BatchNorm(name="norm")(ops.relu(unit(x)), train)


class DilatedPyramid(nn.Module):
    """Dilated units of one input, concatenated and joined by a 1x1 convolution."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        maps = [
            DilatedUnit(self.features, dilation, self.dtype, name=f"aspp_block{i}")(x, train)
            for i, dilation in enumerate(DILATIONS, start=1)
        ]
        x = jnp.concatenate(maps, axis=-1)
        join = conv(self.features, x.shape[-1], 1, self.dtype, "output", kernel_init=HE_NORMAL)
        return join(x)


class AttentionBlock(nn.Module):
    """Scale `x` at each position by a mask, of any sign, computed from `skip` and `x`."""

    dtype: Dtype

    @nn.compact
    def __call__(
        self, skip: Float[Array, "b i j e"], x: Float[Array, "b h w d"], train: bool
    ) -> Float[Array, "b h w d"]:
        d = x.shape[-1]
        y = ops.max_pool(PreActConv(d, self.dtype, name="conv_encoder")(skip, train))
        y = y + PreActConv(d, self.dtype, name="conv_decoder")(x, train)
        return PreActConv(1, self.dtype, size=1, name="conv_attn")(y, train) * x


class Upsample(nn.Module):
    """Twice the size by bilinear interpolation with half-pixel centres."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j d"]:
        b, h, w, d = x.shape
        return jax.image.resize(x, (b, 2 * h, 2 * w, d), "bilinear")


class ResUNetPlusPlus(nn.Module):
    """ResUNet++ as re-implemented by the repository that its authors point to.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 8; returns logits float32[b h w k].
    Source: Jha et al., IEEE ISM 2019, as in github.com/rishikksh20/ResUnet, with k channels in the
    head and no sigmoid. That code has twice the authors' channels, squeezes only between the levels
    of the encoder, and has one attention mask for all channels.
    """

    num_classes: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        widths, dtype = [self.width * 2**level for level in range(LEVELS + 1)], self.dtype
        images = SPEC.input.normalize(images, dtype)
        x = Stem(self.width, dtype, name="input_layer")(images, train)
        x = x + GreyConv(self.width, 3, 1, dtype, name="input_skip")(images)
        skips = []
        for level in range(1, LEVELS):
            skips.append(x)
            x = SqueezeExcite(dtype, name=f"squeeze_excite{level}")(x)
            unit = ResidualConv(widths[level], dtype, stride=2, name=f"residual_conv{level}")
            x = unit(x, train)
        x = DilatedPyramid(widths[LEVELS], dtype, name="aspp_bridge")(x, train)
        for i, skip in enumerate(reversed(skips), start=1):
            x = AttentionBlock(dtype, name=f"attn{i}")(skip, x, train)
            x = jnp.concatenate([Upsample(name=f"upsample{i}")(x), skip], axis=-1)
            x = ResidualConv(widths[LEVELS - i], dtype, name=f"up_residual_conv{i}")(x, train)
        x = DilatedPyramid(self.width, dtype, name="aspp_out")(x, train)
        return conv(self.num_classes, self.width, 1, dtype, "output_layer")(x).astype(jnp.float32)


def resunet_pp_config() -> ConfigDict:
    """Return the fields of `config.model` that ResUNet++ has of its own."""
    config = ConfigDict()
    config.width = 32  # channels at full size, doubled on each of the four levels below
    return config


def build(config: ConfigDict) -> ResUNetPlusPlus:
    """Return the module of `config.model`. Raises UsageError if the width is below 1."""
    if config.width < 1:
        raise UsageError(f"config.model.width: got {config.width}, expected 1 or more")
    return ResUNetPlusPlus(config.num_classes, config.width, jnp.dtype(config.dtype))


SPEC = ModelSpec(
    config=resunet_pp_config,
    build=build,
    image_size=multiple_of(2 ** (LEVELS - 1)),
    paper="1911.07067",
    code="github.com/rishikksh20/ResUnet@9998512",
    small={"width": 8},
)
