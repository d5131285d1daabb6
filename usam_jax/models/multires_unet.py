"""MultiResUNet: blocks of three chained convolutions, and convolutions along the skips."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import BatchNorm, ConvUnit, Dtype
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.common.up_block import up_kernel
from usam_jax.utils.errors import UsageError

LEVELS = 5
ALPHA = 1.67  # channels of a block per channel of the U-Net's
SHARES = {"conv_3x3": 0.167, "conv_5x5": 0.333, "conv_7x7": 0.5}  # of each convolution of a block


def block_widths(width: int) -> dict[str, int]:
    """Return the channels of each convolution of a block that replaces `width` channels."""
    return {name: int(ALPHA * width * share) for name, share in SHARES.items()}


class MultiResBlock(nn.Module):
    """The outputs of three chained conv units plus a 1x1 convolution, of a grey image if `grey`.

    The output has `sum(block_widths(width).values())` channels.
    """

    width: int
    dtype: Dtype
    grey: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        widths, dtype, grey = block_widths(self.width), self.dtype, self.grey
        point = ConvUnit(
            sum(widths.values()), dtype, grey, size=1, activation=None, name="shortcut"
        )
        shortcut = point(x, train)
        maps: list[Array] = []
        for name, features in widths.items():
            x = ConvUnit(features, dtype, grey and not maps, name=name)(x, train)
            maps.append(x)
        x = BatchNorm(name="batch_norm1")(jnp.concatenate(maps, axis=-1), train) + shortcut
        return ops.relu(BatchNorm(name="batch_norm2")(x, train))


class ResPath(nn.Module):
    """Residual conv units along a skip.

    The second norm of a unit serves twice, before and after the sum. In training, each use is
    normalised by its own batch statistics and updates the running ones.
    """

    features: int
    depth: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        e, dtype = self.features, self.dtype
        for i in range(self.depth):
            point = ConvUnit(e, dtype, size=1, activation=None, name=f"shortcuts_{i}")
            norm = BatchNorm(name=f"bns_{i}")
            y = ops.relu(norm(ConvUnit(e, dtype, name=f"convs_{i}")(x, train), train))
            x = ops.relu(norm(y + point(x, train), train))
        return x


class UpConv(nn.Module):
    """Transposed 2x2 convolution with stride 2."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        return ops.up_conv(x, *up_kernel(x.shape[-1], self.features, self.dtype, "up")())


class MultiResUNet(nn.Module):
    """MultiResUNet as in its authors' PyTorch code. The logits come out of a BatchNorm.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 16; returns logits float32[b h w k].
    Source: Ibtehaz, Rahman, Neural Networks 121, 2020, as in github.com/nibtehaz/MultiResUNet. That
    code differs from the paper's in Keras in the order of norms, ReLUs and sums.
    """

    num_classes: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        widths, dtype = [self.width * 2**level for level in range(LEVELS)], self.dtype
        x = SPEC.input.normalize(images, dtype)
        skips: list[Array] = []
        for level, width in enumerate(widths, start=1):
            x = x if level == 1 else ops.max_pool(x)
            x = MultiResBlock(width, dtype, level == 1, name=f"multiresblock{level}")(x, train)
            if level < LEVELS:
                path = ResPath(width, LEVELS - level, dtype, name=f"respath{level}")
                skips.append(path(x, train))
        for i, width in enumerate(reversed(widths[:-1]), start=LEVELS + 1):
            x = UpConv(width, dtype, name=f"upsample{i}")(x)
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = MultiResBlock(width, dtype, name=f"multiresblock{i}")(x, train)
        head = ConvUnit(self.num_classes, dtype, size=1, activation=None, name="conv_final")
        return head(x, train).astype(jnp.float32)


def multires_unet_config() -> ConfigDict:
    """Return the fields of `config.model` that MultiResUNet has of its own."""
    config = ConfigDict()
    config.width = (
        32  # channels at full size of the U-Net that it replaces; its own are 1.67 times more
    )
    return config


def build(config: ConfigDict) -> MultiResUNet:
    """Return the module of `config.model`. Raises UsageError if the width is too small."""
    # Each convolution of the first block needs a channel.
    if min(block_widths(config.width).values()) < 1:
        raise UsageError(f"config.model.width: got {config.width}, expected 4 or more")
    return MultiResUNet(config.num_classes, config.width, jnp.dtype(config.dtype))


SPEC = ModelSpec(
    config=multires_unet_config,
    build=build,
    image_size=multiple_of(2 ** (LEVELS - 1)),
    paper="1902.04049",
    code="github.com/nibtehaz/MultiResUNet@5318aaf",
    small={"width": 8},
)
