"""Attention U-Net: U-Net with an attention gate on each of its four skips."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import Activation, ConvUnit, Dtype, conv
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.unet import LEVELS, ConvBlock
from usam_jax.utils.errors import UsageError


class AttentionGate(nn.Module):
    """Scale `skip` at each position by a mask in (0, 1) computed from `signal` and `skip`.

    `features` is the number of channels in which the two are added (F_int in the published code).
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, signal: Float[Array, "b h w d"], skip: Float[Array, "b h w d"], train: bool
    ) -> Float[Array, "b h w d"]:
        def point_unit(features: int, name: str, activation: Activation | None = None) -> ConvUnit:
            return ConvUnit(features, self.dtype, size=1, activation=activation, name=name)

        x = point_unit(self.features, "signal")(signal, train)
        x = x + point_unit(self.features, "skip")(skip, train)
        mask = point_unit(1, "mask", jax.nn.sigmoid)(ops.relu(x), train)
        return skip * mask


class AttentionUNet(nn.Module):
    """Attention U-Net in 2-D: the upsampled map gates the skip that it is concatenated with.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 16; returns logits float32[b h w k].
    Source: Oktay et al., 2018, as in github.com/LeeJunHyun/Image_Segmentation. That code differs from
    the paper: it gates all four skips, at the skip's size, and has no deep supervision.
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
            skip = AttentionGate(features // 2, self.dtype, name=f"gate{level}")(x, skip, train)
            x = jnp.concatenate([skip, x], axis=-1)
            x = ConvBlock(features, self.dtype, name=f"merge{level}")(x, train)
        return conv(self.num_classes, self.width, 1, self.dtype, "head")(x).astype(jnp.float32)


def attention_unet_config() -> ConfigDict:
    config = ConfigDict()
    config.width = 64  # channels at full size, doubled on each of the four levels below
    return config


def build(config: ConfigDict) -> AttentionUNet:
    # A gate adds in half of its skip's channels, of which there must be one at full size.
    if config.width < 2:
        raise UsageError(f"config.model.width: got {config.width}, expected 2 or more")
    return AttentionUNet(config.num_classes, config.width, jnp.dtype(config.dtype))


SPEC = ModelSpec(
    config=attention_unet_config,
    build=build,
    image_size=multiple_of(2 ** (LEVELS - 1)),
    paper="1804.03999",
    code="github.com/LeeJunHyun/Image_Segmentation@5e9da93",
    small={"width": 8},
)
