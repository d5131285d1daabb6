"""Clicks that name a class, and the previous prediction: an extension of U-SAM and S.

All its outputs are zero at the start, so a network with converted weights and an untrained
extension computes what the published network computes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from usam_jax.models import ops
from usam_jax.models.common.layers import Dtype, LayerNorm, average_pool, conv
from usam_jax.models.sam.prompt_encoder import PADDING, Prompts

CLICK_SIGMA = 3.0  # pixels of the model's input
POINT_SIGMA = 0.7  # of the clicks that act on the logits themselves
CLICK_GAIN = 96.0  # of click logits: with it they outweigh the decoder's after few hundred steps


@struct.dataclass
class Hints:
    """What the extension adds to the image embedding, the decoder and the logits.

    `maps` are added to the skips of U-SAM or to the upsampled maps of S, largest first.
    """

    embedding: Float[Array, "b g g d"]
    maps: tuple[Float[Array, "b _ _ _"], ...]
    logits: Float[Array, "b h w k"]


def with_points(prompts: Prompts | None, batch: int) -> Prompts:
    """Return `prompts` with arrays of points, empty if it has none.

    Raises ValueError if points have no classes.
    """
    prompts = prompts or Prompts()
    if prompts.points_xy is None:
        none = jnp.zeros((batch, 0), jnp.int32)
        xy = jnp.zeros((batch, 0, 2), jnp.float32)
        return dataclasses.replace(prompts, points_xy=xy, point_labels=none, point_classes=none)
    if prompts.point_classes is None:
        raise ValueError(
            "prompts.point_classes: got None with points_xy, expected int32[b p]: the network is "
            "interactive"
        )
    return prompts


def given_points(prompts: Prompts) -> Bool[Array, "b p"]:
    """Return which points are clicks: neither padding nor marked as not given."""
    assert prompts.point_labels is not None
    real = prompts.point_labels != PADDING
    return real if prompts.given is None else real & prompts.given[:, :-1]


def click_maps(
    points_xy: Float[Array, "b p 2"], weights: Float[Array, "b p k"], size: int, sigma: float
) -> Float[Array, "b h w k"]:
    """Return Gaussians of `sigma` pixels around the points, summed in each class, at most 1.

    `weights` is the one-hot class of each point, zero for a point that does not count.
    """
    pixels = jnp.arange(size, dtype=jnp.float32)
    distance = points_xy[..., None] - pixels  # [b p 2 size]: along x, along y
    along_x, along_y = jnp.moveaxis(jnp.exp(-0.5 * (distance / sigma) ** 2), 2, 0)
    return jnp.minimum(jnp.einsum("bph,bpw,bpk->bhwk", along_y, along_x, weights), 1.0)


class MaskDownscaling(nn.Module):
    """SAM's embedding of a mask prompt with several channels, at a quarter of `x`'s size."""

    dim: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w k"]) -> Float[Array, "b i j d"]:
        x = conv(4, x.shape[-1], 2, self.dtype, "conv_0", stride=2)(x)
        x = ops.gelu(LayerNorm(1e-6, name="norm_0")(x))
        x = conv(16, 4, 2, self.dtype, "conv_1", stride=2)(x)
        x = ops.gelu(LayerNorm(1e-6, name="norm_1")(x))
        return zero_conv(self.dim, 1, self.dtype, "conv_2")(x)


def zero_conv(features: int, size: int, dtype: Dtype, name: str) -> nn.Conv:
    """Return a square convolution without bias whose output is zero at the start."""
    zeros = nn.initializers.zeros
    return nn.Conv(
        features, (size, size), use_bias=False, dtype=dtype, kernel_init=zeros, name=name
    )


class Interactive(nn.Module):
    """Embeds the classes of clicks and the previous prediction.

    `map_channels` and `map_strides` describe the maps of `Hints`; strides are relative to the
    image. Images without clicks and without a previous prediction get zeros.
    """

    num_classes: int
    dim: int
    image_size: int
    map_channels: tuple[int, ...]
    map_strides: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, prompts: Prompts) -> Hints:
        k, size = self.num_classes, self.image_size
        assert prompts.points_xy is not None and prompts.point_classes is not None
        one_hot = jax.nn.one_hot(prompts.point_classes, k) * given_points(prompts)[..., None]
        hints = click_maps(prompts.points_xy, one_hot, size, CLICK_SIGMA)
        previous = prompts.previous
        previous = jnp.zeros_like(hints) if previous is None else previous
        # Without the background, a previous prediction differs from none where it has foreground
        # alone, and the statistics of BatchNorm hold for both.
        foreground = previous[..., 1:].astype(hints.dtype)
        hints = jnp.concatenate([hints, foreground], -1).astype(self.dtype)
        any_hint = (hints != 0).any((1, 2, 3), keepdims=True)
        embedding = MaskDownscaling(self.dim, self.dtype, name="mask_downscaling")(
            average_pool(hints, (4, 4))
        )
        maps = (
            zero_conv(channels, 3, self.dtype, f"map_{i}")(average_pool(hints, (stride, stride)))
            for i, (channels, stride) in enumerate(
                zip(self.map_channels, self.map_strides, strict=True)
            )
        )
        # The decoder's maps are too smooth to change a single pixel.
        spots = click_maps(prompts.points_xy, one_hot, size, POINT_SIGMA)
        of_click = self.param("click_logits", nn.initializers.zeros, (k, k))
        return Hints(
            embedding=jnp.where(any_hint, embedding, 0),
            maps=tuple(maps),
            logits=CLICK_GAIN * spots @ of_click,
        )
