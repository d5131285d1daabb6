"""nnU-Net's 2-D network with a residual encoder (the presets ResEnc M, L and XL)."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import Dtype, average_pool
from usam_jax.models.common.spec import ModelSpec
from usam_jax.models.nnunet import (
    SLOPE,
    ConvParams,
    ConvUnit,
    InstanceNorm,
    NnUNet,
    Pair,
    Plan,
    encode_stages,
    nnunet_config,
)
from usam_jax.models.nnunet import SPEC as PLAIN
from usam_jax.models.nnunet import build as build_plain
from usam_jax.models.ops.conv import same_padding


class ConvNorm(nn.Module):
    """Convolution and instance norm, whose scale starts at 0 if `zero` (so a block is its skip)."""

    features: int
    kernel_size: Pair
    dtype: Dtype
    bias: bool = True
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        h, w = self.kernel_size
        shape, fan_in = (h, w, x.shape[-1], self.features), h * w * x.shape[-1]
        kernel, bias = ConvParams(shape, fan_in, self.dtype, self.bias, name="conv")()
        x = ops.convolve(x, kernel, padding=same_padding(kernel)) + bias
        scale_init = nn.initializers.zeros if self.zero else nn.initializers.ones
        return InstanceNorm(scale_init, name="norm")(x)


class Block(nn.Module):
    """Two convolutions around a skip: average pooling for a stride, 1x1 for other channels."""

    features: int
    kernel_size: Pair
    stride: Pair
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        unit = ConvUnit(self.features, self.kernel_size, self.dtype, self.stride, name="conv1")
        y = ConvNorm(self.features, self.kernel_size, self.dtype, zero=True, name="conv2")(unit(x))
        x = average_pool(x, self.stride)
        if x.shape[-1] != self.features:
            x = ConvNorm(self.features, (1, 1), self.dtype, bias=False, name="skip_1")(x)
        return jax.nn.leaky_relu(y + x, SLOPE)


class Stem(nn.Module):
    """The conv unit before the first stage."""

    features: int
    kernel_size: Pair
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        return ConvUnit(self.features, self.kernel_size, self.dtype, name="convs_0")(x)


class ResidualStage(nn.Module):
    """Residual blocks, the first of which has the stride."""

    depth: int
    features: int
    kernel_size: Pair
    stride: Pair
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        for i in range(self.depth):
            stride = self.stride if i == 0 else (1, 1)
            block = Block(self.features, self.kernel_size, stride, self.dtype, name=f"blocks_{i}")
            x = block(x)
        return x


class ResidualEncoder(nn.Module):
    """The maps of all stages, from full size down."""

    plan: Plan
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> list[Float[Array, "b _ _ _"]]:
        plan = self.plan
        x = Stem(plan.features[0], plan.kernel_sizes[0], self.dtype, name="stem")(x)
        return encode_stages(x, plan, ResidualStage, self.dtype)


def resenc_config() -> ConfigDict:
    """Return the fields of `config.model` that the network has of its own: the plan for 224x224."""
    config = nnunet_config()
    config.depths = (1, 3, 4, 6, 6, 6)  # residual blocks in the encoder
    config.decoder_depths = (1, 1, 1, 1, 1)
    return config


def build(config: ConfigDict) -> NnUNet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    return build_plain(config, ResidualEncoder)


SPEC = ModelSpec(
    config=resenc_config,
    build=build,
    param_groups=PLAIN.param_groups,
    paper="2404.09556",
    code=PLAIN.code,
    small=PLAIN.small,
    depends=PLAIN.depends,
)
