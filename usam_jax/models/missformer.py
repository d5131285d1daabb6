"""MISSFormer: a U of transformer blocks, whose skips attend to each other at all scales."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.layers import (
    DepthwiseConv,
    Dtype,
    GreyConv,
    LayerNorm,
    PatchConv,
    conv,
    linear,
)
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.swin_unet import PatchExpanding
from usam_jax.utils.errors import UsageError

SCALES = 4  # maps of the encoder, the first at a quarter of the image's size
EPSILON = 1e-5  # of every LayerNorm

# Initial values of the encoder and the bridge (torch's), and of the decoder, as published.
Inits = Mapping[str, Any]
TORCH: Inits = {}
XAVIER: Inits = {
    "kernel_init": nn.initializers.xavier_uniform(),
    "bias_init": nn.initializers.zeros,
}


def attend(
    x: Float[Array, "b t d"],
    source: Float[Array, "b s d"],
    head_dim: int,
    dtype: Dtype,
    inits: Inits,
) -> Float[Array, "b t d"]:
    """Multi-head attention of the tokens `x` to `source`, with the layers of the calling module."""
    b, t, d = x.shape
    q = linear(d, d, dtype, "q", **inits)(x)
    k, v = jnp.split(linear(2 * d, d, dtype, "kv", **inits)(source), 2, axis=-1)
    q, k, v = (y.reshape(b, -1, d // head_dim, head_dim) for y in (q, k, v))
    x = ops.self_attention(q, k, v, None).reshape(b, t, d)
    return linear(d, d, dtype, "proj", **inits)(x)


class EfficientAttention(nn.Module):
    """Multi-head self-attention, with keys and values of a map `reduction` times smaller."""

    head_dim: int
    reduction: int
    dtype: Dtype
    inits: Inits

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        b, _, _, d = x.shape
        source = x
        if self.reduction > 1:
            source = PatchConv(d, self.reduction, self.dtype, **self.inits, name="sr")(x)
            source = LayerNorm(EPSILON, name="norm")(source)
        tokens, source = (y.reshape(b, -1, d) for y in (x, source))
        return attend(tokens, source, self.head_dim, self.dtype, self.inits).reshape(x.shape)


class MixMlp(nn.Module):
    """Two linear layers around a depthwise convolution with a skip."""

    dtype: Dtype
    inits: Inits

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        d, hidden = x.shape[-1], 4 * x.shape[-1]
        x = linear(hidden, d, self.dtype, "fc1", **self.inits)(x)
        x = x + DepthwiseConv(3, self.dtype, **self.inits, name="dwconv")(x)
        x = ops.gelu(LayerNorm(EPSILON, name="norm1")(x))
        return linear(d, hidden, self.dtype, "fc2", **self.inits)(x)


class Block(nn.Module):
    """Pre-norm transformer block on a map."""

    head_dim: int
    reduction: int
    dtype: Dtype
    inits: Inits

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        attention = EfficientAttention(
            self.head_dim, self.reduction, self.dtype, self.inits, name="attn"
        )
        x = x + attention(LayerNorm(EPSILON, name="norm1")(x))
        mlp = MixMlp(self.dtype, self.inits, name="mlp")
        return x + mlp(LayerNorm(EPSILON, name="norm2")(x))


def reduction_at(scale: int) -> int:
    """Factor by which keys and values are reduced: to the smallest map, 1/32 of the image."""
    return 2 ** (SCALES - 1 - scale)


class PatchEmbed(nn.Module):
    """Overlapping patches to normalised tokens: of the grey image 4x4 smaller, of a map 2x2."""

    features: int
    of_image: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        if self.of_image:
            x = GreyConv(self.features, 7, 4, self.dtype, padding=3, name="proj")(x)
        else:
            x = conv(self.features, x.shape[-1], 3, self.dtype, "proj", stride=2)(x)
        return LayerNorm(EPSILON, name="norm")(x)


class Encoder(nn.Module):
    """Hierarchical transformer: the normalised maps of all scales, largest first."""

    widths: Sequence[int]
    depth: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        maps = []
        for i, features in enumerate(self.widths):
            x = PatchEmbed(features, i == 0, self.dtype, name=f"patch_embed{i + 1}")(x)
            for j in range(self.depth):
                sizes = self.widths[0], reduction_at(i)
                x = Block(*sizes, self.dtype, TORCH, name=f"block{i + 1}_{j}")(x)
            x = LayerNorm(EPSILON, name=f"norm{i + 1}")(x)
            maps.append(x)
        return tuple(maps)


def join_maps(maps: Sequence[Float[Array, "b _ _ _"]], width: int) -> Float[Array, "b t d"]:
    """Tokens of `width` channels of all maps: a pixel of more channels gives several in a row."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, width) for x in maps], axis=1)


def split_maps(
    tokens: Float[Array, "b t d"], shapes: Sequence[tuple[int, ...]]
) -> list[Float[Array, "b _ _ _"]]:
    """Inverse of `join_maps` for maps of `shapes` (b, h, w, d)."""
    maps, start = [], 0
    for b, h, w, d in shapes:
        stop = start + h * w * d // tokens.shape[-1]
        maps.append(tokens[:, start:stop].reshape(b, h, w, d))
        start = stop
    return maps


class ScaleReduce(nn.Module):
    """Normalised tokens of all maps, each reduced to the size of the smallest one.

    Tokens have `width` channels, so a pixel of m times as many gives m tokens. Unlike in
    `join_maps`, its channels are (c, token), and the first tokens of all pixels come before the
    second ones, as published.
    """

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> Float[Array, "b s d"]:
        tokens = []
        for i, x in enumerate(maps[:-1]):
            x = PatchConv(x.shape[-1], reduction_at(i), self.dtype, name=f"sr{i}")(x)
            b, h, w, d = x.shape
            x = x.reshape(b, h * w, self.width, d // self.width).transpose(0, 3, 1, 2)
            tokens.append(x.reshape(b, -1, self.width))
        tokens.append(join_maps(maps[-1:], self.width))
        return LayerNorm(EPSILON, name="norm")(jnp.concatenate(tokens, axis=1))


class BridgeAttention(nn.Module):
    """Attention of one head of the tokens of all maps to those of `ScaleReduce`."""

    shapes: Sequence[tuple[int, ...]]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        d = x.shape[-1]
        reduce = ScaleReduce(d, self.dtype, name="scale_reduce")
        return attend(x, reduce(split_maps(x, self.shapes)), d, self.dtype, TORCH)


class BridgeLayer(nn.Module):
    """Pre-norm transformer layer on the tokens of all maps, each map with its own MLP."""

    shapes: Sequence[tuple[int, ...]]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        attention = BridgeAttention(self.shapes, self.dtype, name="attn")
        x = x + attention(LayerNorm(EPSILON, name="norm1")(x))
        maps = split_maps(LayerNorm(EPSILON, name="norm2")(x), self.shapes)
        maps = [MixMlp(self.dtype, TORCH, name=f"mixffn{i}")(y) for i, y in enumerate(maps, 1)]
        return x + join_maps(maps, x.shape[-1])


class Bridge(nn.Module):
    """Layers in which the maps of all scales attend to each other."""

    depth: int
    dtype: Dtype

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ _"]]:
        shapes = tuple(x.shape for x in maps)
        x = join_maps(maps, shapes[0][-1])
        for i in range(1, self.depth + 1):
            x = BridgeLayer(shapes, self.dtype, name=f"bridge_layer{i}")(x)
        return split_maps(x, shapes)


class Decoder(nn.Module):
    """Concatenation with a skip, transformer blocks, and a map `scale` times larger."""

    head_dim: int
    reduction: int
    depth: int
    scale: int
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], skip: Float[Array, "b h w e"]
    ) -> Float[Array, "b i j f"]:
        d = skip.shape[-1]
        x = jnp.concatenate([x, skip], axis=-1)
        x = linear(d, x.shape[-1], self.dtype, "concat_linear", **XAVIER)(x)
        for i in range(1, self.depth + 1):
            name = f"layer_former_{i}"
            x = Block(self.head_dim, self.reduction, self.dtype, XAVIER, name=name)(x)
        return PatchExpanding(
            self.scale, self.features, self.dtype, XAVIER["kernel_init"], name="layer_up"
        )(x)


class MissFormer(nn.Module):
    """MISSFormer: SegFormer's encoder, a bridge over all scales and a mirrored decoder.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 32. Returns logits
    float32[b h w k].
    Source: Huang et al., IEEE TMI 2022, as in github.com/ZhifangDeng/MISSFormer. In that code, not
    in the paper, the reduced tokens of the bridge mix channels and positions (`ScaleReduce`).
    """

    num_classes: int
    widths: Sequence[int]
    depth: int
    bridge_depth: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        x, dtype = SPEC.input.normalize(images, self.dtype), self.dtype
        maps = Encoder(self.widths, self.depth, dtype, name="backbone")(x)
        *skips, x = Bridge(self.bridge_depth, dtype, name="bridge")(maps)
        width, kernel_init = self.widths[0], XAVIER["kernel_init"]
        expanding = PatchExpanding(2, self.widths[-1] // 2, dtype, kernel_init, name="decoder_3")
        x = expanding(x)
        for level in range(SCALES - 2, -1, -1):
            scale, features = (2, self.widths[level] // 2) if level else (4, width)
            sizes = width, reduction_at(level), self.depth, scale, features
            x = Decoder(*sizes, dtype, name=f"decoder_{level}")(x, skips[level])
        head = conv(self.num_classes, width, 1, dtype, "last_layer", **XAVIER)
        return head(x).astype(jnp.float32)


def missformer_config() -> ConfigDict:
    """Return the fields of `config.model` that MISSFormer has of its own."""
    config = ConfigDict()
    config.widths = (64, 128, 320, 512)  # channels of each scale; the first is that of a head
    config.depth = 2  # blocks of each scale of the encoder and of the decoder
    config.bridge_depth = 4  # layers in which all scales attend to each other
    return config


def build(config: ConfigDict) -> MissFormer:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: got {config[field]!r}, expected {expected}")

    widths = tuple(config.widths)
    sized = len(widths) == SCALES and min(widths) >= 2 and all(x % 2 == 0 for x in widths)
    require(sized, "widths", f"{SCALES} positive even numbers")
    whole = all(x % widths[0] == 0 for x in widths)
    require(whole, "widths", f"multiples of the first, {widths[0]}")
    require(config.depth >= 1, "depth", "1 or more")
    require(config.bridge_depth >= 0, "bridge_depth", "0 or more")
    return MissFormer(
        num_classes=config.num_classes,
        widths=widths,
        depth=config.depth,
        bridge_depth=config.bridge_depth,
        dtype=jnp.dtype(config.dtype),
    )


SMALL: dict[str, Any] = {"widths": (16, 32, 80, 128), "depth": 1, "bridge_depth": 1}

SPEC = ModelSpec(
    config=missformer_config,
    build=build,
    image_size=multiple_of(32),
    paper="2109.07162",
    code="github.com/ZhifangDeng/MISSFormer@007424e",
    small=SMALL,
)
