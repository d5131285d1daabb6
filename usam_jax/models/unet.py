"""U-Net, the plain convolutional baseline: a worked example of docs/adding-a-model.md."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import ConvUnit, Dtype, conv
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.utils.errors import UsageError

LEVELS = 5


class ConvBlock(nn.Module):
    """Two conv units (convolution, BatchNorm, ReLU), the first of a grey image if `grey`."""

    features: int
    dtype: Dtype
    grey: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        x = ConvUnit(self.features, self.dtype, self.grey, name="unit_0")(x, train)
        return ConvUnit(self.features, self.dtype, name="unit_1")(x, train)


class UNet(nn.Module):
    """U-Net with padded convolutions, BatchNorm and nearest-neighbour upsampling.

    Images are float32[b h w], grey in [0, 1], with h and w multiples of 16. Returns logits
    float32[b h w k].
    Source: Ronneberger, Fischer, Brox, MICCAI 2015, as in github.com/LeeJunHyun/Image_Segmentation.
    """

    num_classes: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        widths = [self.width * 2**level for level in range(LEVELS)]
        x = SPEC.input.normalize(images, self.dtype)
        skips = []
        for level, features in enumerate(widths, start=1):
            x = x if level == 1 else ops.max_pool(x)
            x = ConvBlock(features, self.dtype, level == 1, name=f"down{level}")(x, train)
            skips.append(x)
        for level in range(LEVELS, 1, -1):
            features, skip = widths[level - 2], skips[level - 2]
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = ConvUnit(features, self.dtype, name=f"up{level}")(x, train)
            x = jnp.concatenate([skip, x], axis=-1)
            x = ConvBlock(features, self.dtype, name=f"merge{level}")(x, train)
        return conv(self.num_classes, self.width, 1, self.dtype, "head")(x).astype(jnp.float32)


def unet_config() -> ConfigDict:
    """Return the fields of `config.model` that the U-Net has of its own."""
    config = ConfigDict()
    config.width = 64  # channels at full size, doubled on each of the four levels below
    return config


def build(config: ConfigDict) -> UNet:
    """Return the module of `config.model`. Raises UsageError if the width is below 1."""
    if config.width < 1:
        raise UsageError(f"config.model.width: got {config.width}, expected 1 or more")
    return UNet(config.num_classes, config.width, jnp.dtype(config.dtype))


SPEC = ModelSpec(
    config=unet_config,
    build=build,
    image_size=multiple_of(2 ** (LEVELS - 1)),
    paper="1505.04597",
    code="github.com/LeeJunHyun/Image_Segmentation@5e9da93",
    small={"width": 8},
)
