"""R2U-Net: U-Net with recurrent convolutions in residual blocks."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import ConvUnit, Dtype, GreyConv, conv
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.unet import LEVELS
from usam_jax.utils.errors import UsageError


class RecurrentUnit(nn.Module):
    """One conv unit applied to `x`, then `steps` times to `x` plus the unit's last output.

    In training, each application is normalised by its own batch statistics and updates the running
    ones.
    """

    features: int
    steps: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w d"]:
        unit = ConvUnit(self.features, self.dtype, name="unit")
        y = unit(x, train)
        for _ in range(self.steps):
            y = unit(x + y, train)
        return y


class ResidualBlock(nn.Module):
    """1x1 convolution, of a grey image if `grey`, plus two recurrent units of its output."""

    features: int
    steps: int
    dtype: Dtype
    grey: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        e, dtype = self.features, self.dtype
        if self.grey:
            x = GreyConv(e, 1, 1, dtype, name="point")(x)
        else:
            x = conv(e, x.shape[-1], 1, dtype, "point")(x)
        y = RecurrentUnit(e, self.steps, dtype, name="recurrent_0")(x, train)
        return x + RecurrentUnit(e, self.steps, dtype, name="recurrent_1")(y, train)


class R2UNet(nn.Module):
    """R2U-Net with nearest-neighbour upsampling.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 16; returns logits float32[b h w k].
    Source: Alom et al., 2018, as in github.com/LeeJunHyun/Image_Segmentation. That code differs from
    the paper: one kernel, not two, acts on the sum of a unit's input and its last output.
    """

    num_classes: int
    width: int
    steps: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        widths, dtype = [self.width * 2**level for level in range(LEVELS)], self.dtype
        x = SPEC.input.normalize(images, dtype)
        skips = []
        for level, features in enumerate(widths, start=1):
            x = x if level == 1 else ops.max_pool(x)
            x = ResidualBlock(features, self.steps, dtype, level == 1, name=f"down{level}")(
                x, train
            )
            skips.append(x)
        for level in range(LEVELS, 1, -1):
            features, skip = widths[level - 2], skips[level - 2]
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = ConvUnit(features, dtype, name=f"up{level}")(x, train)
            x = jnp.concatenate([skip, x], axis=-1)
            x = ResidualBlock(features, self.steps, dtype, name=f"merge{level}")(x, train)
        return conv(self.num_classes, self.width, 1, dtype, "head")(x).astype(jnp.float32)


def r2unet_config() -> ConfigDict:
    """Return the fields of `config.model` that R2U-Net has of its own."""
    config = ConfigDict()
    config.width = 64  # channels at full size, doubled on each of the four levels below
    config.steps = (
        2  # recurrent applications of each conv unit after the first; no tensor depends on it
    )
    return config


def build(config: ConfigDict) -> R2UNet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    for field, least in (("width", 1), ("steps", 0)):
        if config[field] < least:
            raise UsageError(f"config.model.{field}: got {config[field]}, expected {least} or more")
    return R2UNet(config.num_classes, config.width, config.steps, jnp.dtype(config.dtype))


SPEC = ModelSpec(
    config=r2unet_config,
    build=build,
    image_size=multiple_of(2 ** (LEVELS - 1)),
    paper="1802.06955",
    code="github.com/LeeJunHyun/Image_Segmentation@5e9da93",
    small={"width": 8},
)
