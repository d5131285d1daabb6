"""nnU-Net's 2-D U-Net: plain convolutions, instance norm and deep supervision."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import Dtype, InstanceNorm
from usam_jax.models.common.spec import (
    GREY_MEAN,
    GREY_STD,
    InputSpec,
    ModelSpec,
    multiple_of,
    refuse_prompts,
)
from usam_jax.models.ops.conv import pair, same_padding
from usam_jax.utils.errors import UsageError

SLOPE = 0.01  # of LeakyReLU
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of a network, each with an entry for each stage, from full size down.

    `depths` counts the convolutions (or residual blocks) of the encoder, `decoder_depths` the
    convolutions of the decoder, which has a stage less.
    """

    features: tuple[int, ...]
    kernel_sizes: tuple[Pair, ...]
    strides: tuple[Pair, ...]
    depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]


def kaiming_normal(fan_in: int) -> nn.initializers.Initializer:
    """Kaiming's normal initialiser for LeakyReLU, as nnU-Net uses it for all kernels."""
    return nn.initializers.normal(math.sqrt(2 / (1 + SLOPE**2) / fan_in))


class ConvParams(nn.Module):
    """Kernel and bias (zero at first) of a convolution, without the convolution itself."""

    shape: tuple[int, ...]
    fan_in: int
    dtype: Dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "h w d e"], Float[Array, " e"]]:
        kernel = self.param("kernel", kaiming_normal(self.fan_in), self.shape)
        if not self.use_bias:
            return kernel.astype(self.dtype), jnp.zeros(self.shape[-1:], self.dtype)
        bias = self.param("bias", nn.initializers.zeros, self.shape[-1:])
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class ConvUnit(nn.Module):
    """Convolution, instance norm and LeakyReLU, of a map or of an upsampled one and its skip.

    A kernel is padded by half its size on all sides, whatever the stride.
    """

    features: int
    kernel_size: Pair
    dtype: Dtype
    stride: Pair = (1, 1)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w d"],
        skip: Float[Array, "b i j s"] | None = None,
        up: tuple[Float[Array, "m n d c"], Float[Array, " c"]] | None = None,
    ) -> Float[Array, "b k l e"]:
        inputs = x.shape[-1] if skip is None or up is None else up[1].size + skip.shape[-1]
        shape = (*self.kernel_size, inputs, self.features)
        kernel, bias = ConvParams(shape, math.prod(shape[:3]), self.dtype, name="conv")()
        if up is None:
            x = ops.convolve(x, kernel, stride=self.stride, padding=same_padding(kernel)) + bias
        else:
            x = ops.up_concat_conv(x, skip, *up, kernel, bias)
        return jax.nn.leaky_relu(InstanceNorm(name="norm")(x), SLOPE)


class Stage(nn.Module):
    """Conv units, the first of which has the stride."""

    depth: int
    features: int
    kernel_size: Pair
    stride: Pair
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        for i in range(self.depth):
            stride = self.stride if i == 0 else (1, 1)
            unit = ConvUnit(self.features, self.kernel_size, self.dtype, stride, name=f"convs_{i}")
            x = unit(x)
        return x


class Encoder(nn.Module):
    """The maps of all stages, from full size down."""

    plan: Plan
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> list[Float[Array, "b _ _ _"]]:
        return encode_stages(x, self.plan, Stage, self.dtype)


def encode_stages(
    x: Float[Array, "b h w d"], plan: Plan, stage_type: Callable[..., nn.Module], dtype: Dtype
) -> list[Float[Array, "b _ _ _"]]:
    """Return the maps of all stages, from full size down, within an encoder's call."""
    maps = []
    for i, depth in enumerate(plan.depths):
        sizes = plan.features[i], plan.kernel_sizes[i], plan.strides[i]
        x = stage_type(depth, *sizes, dtype, name=f"stages_{i}")(x)
        maps.append(x)
    return maps


class DecoderStage(nn.Module):
    """Conv units on an upsampled map, followed by its skip."""

    depth: int
    features: int
    kernel_size: Pair
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w d"],
        skip: Float[Array, "b i j e"],
        up: tuple[Float[Array, "m n d e"], Float[Array, " e"]],
    ) -> Float[Array, "b i j e"]:
        sizes = self.features, self.kernel_size, self.dtype
        x = ConvUnit(*sizes, name="convs_0")(x, skip, up)
        for i in range(1, self.depth):
            x = ConvUnit(*sizes, name=f"convs_{i}")(x)
        return x


class Decoder(nn.Module):
    """Maps of the encoder to the logits of every stage, from the coarsest to full size."""

    plan: Plan
    num_classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, maps: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ k"]]:
        plan, logits, x = self.plan, [], maps[-1]
        for i, depth in enumerate(plan.decoder_depths):
            level = len(maps) - 2 - i
            features, stride = plan.features[level], plan.strides[level + 1]
            shape = (*stride, x.shape[-1], features)
            # torch's fan-in of a transposed convolution counts its outputs.
            fan_in = features * math.prod(stride)
            up = ConvParams(shape, fan_in, self.dtype, name=f"transpconvs_{i}")()
            sizes = depth, features, plan.kernel_sizes[level]
            x = DecoderStage(*sizes, self.dtype, name=f"stages_{i}")(x, maps[level], up)
            init = kaiming_normal(features)
            head = nn.Conv(
                self.num_classes, (1, 1), dtype=self.dtype, kernel_init=init, name=f"seg_layers_{i}"
            )
            logits.append(head(x).astype(jnp.float32))
        return logits


class NnUNet(nn.Module):
    """nnU-Net's 2-D network for a plan, with the encoder that `encoder_type(plan, dtype)` gives.

    Images are float32[b h w], grey in [0, 1], with h and w multiples of the product of the plan's
    strides. Returns logits float32[b h w k] and sows the logits of the coarser decoder stages as
    `deep1` (half size), `deep2` and so on, without the coarsest, which has no part in the loss.
    Source: Isensee et al., Nature Methods 2021; github.com/MIC-DKFZ/nnUNet.
    """

    plan: Plan
    num_classes: int
    input: InputSpec
    encoder_type: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        x = self.input.normalize(images, self.dtype)
        maps = self.encoder_type(self.plan, self.dtype, name="encoder")(x)
        logits = Decoder(self.plan, self.num_classes, self.dtype, name="decoder")(maps)
        for level, x in enumerate(logits[-2:0:-1], start=1):
            self.sow("aux_logits", f"deep{level}", x)
        return logits[-1]


def nnunet_config() -> ConfigDict:
    """Return the fields of `config.model` that nnU-Net has of its own: its plan for 224x224."""
    config = ConfigDict()
    # An entry for each stage from full size down, a pair (h, w) if it differs along the axes.
    config.features = (32, 64, 128, 256, 512, 512)  # channels
    config.kernel_sizes = (3, 3, 3, 3, 3, 3)
    config.strides = (1, 2, 2, 2, 2, 2)
    config.depths = (2, 2, 2, 2, 2, 2)  # convolutions in the encoder
    config.decoder_depths = (2, 2, 2, 2, 2)  # convolutions in the decoder, from the coarsest on
    config.grey_mean = GREY_MEAN  # normalisation of grey values in [0, 1]
    config.grey_std = GREY_STD
    return config


def read_plan(config: ConfigDict) -> Plan:
    """Return the plan of `config.model`. Raises UsageError if a field is invalid."""
    stages = len(config.features)

    def check(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: got {config[field]}, expected {expected}")

    check(stages >= 3, "features", "the channels of 3 stages or more")
    for field in ("features", "depths", "decoder_depths", "kernel_sizes", "strides"):
        count = stages - (field == "decoder_depths")
        check(len(config[field]) == count, field, f"{count} entries, by config.model.features")
        flat = [n for x in config[field] for n in ((x,) if isinstance(x, int) else x)]
        check(all(n >= 1 for n in flat), field, "1 or more for each stage")
    kernels, strides = (
        tuple(pair(x if isinstance(x, int) else tuple(x)) for x in config[field])
        for field in ("kernel_sizes", "strides")
    )
    check(all(n % 2 for x in kernels for n in x), "kernel_sizes", "odd sizes")
    check(config.grey_std > 0, "grey_std", "more than 0")
    depths, decoder_depths = tuple(config.depths), tuple(config.decoder_depths)
    return Plan(tuple(config.features), kernels, strides, depths, decoder_depths)


def build(config: ConfigDict, encoder_type: Callable[..., nn.Module] = Encoder) -> NnUNet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    plan, spec = read_plan(config), SPEC.at(config)
    dtype = jnp.dtype(config.dtype)
    return NnUNet(plan, config.num_classes, spec.input, encoder_type, dtype)


def depends(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of SPEC that follow from `config.model`.

    The output of level i has the weight 2^-i, scaled so that all of them sum to 1.
    """
    plan = read_plan(config)
    scale = math.lcm(*(math.prod(strides) for strides in zip(*plan.strides, strict=True)))
    levels = range(1, len(plan.decoder_depths) - 1)
    weights = {"logits": 1.0} | {f"deep{level}": 0.5**level for level in levels}
    total = sum(weights.values())
    return {
        "image_size": multiple_of(scale),
        "input": InputSpec(mean=config.grey_mean, std=config.grey_std),
        "loss_weights": {name: weight / total for name, weight in weights.items()},
    }


SPEC = ModelSpec(
    config=nnunet_config,
    build=build,
    # The coarsest logits have no part in the loss, as published.
    param_groups=(("decoder/seg_layers_0/.*", None), (".*", "all")),
    paper="Nature Methods 18, 203 (2021)",
    code="github.com/MIC-DKFZ/nnUNet@0e49508",
    small={
        "features": (8, 16, 32, 32),
        "kernel_sizes": (3, 3, 3, 3),
        "strides": (1, 2, 2, 2),
        "depths": (1, 1, 1, 1),
        "decoder_depths": (1, 1, 1),
    },
    depends=depends,
)
