"""UCTransNet: a U-Net whose skips pass a transformer in which channels attend to channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.models import ops
from usam_jax.models.common.conv_encoder import ConvEncoder
from usam_jax.models.common.layers import (
    BatchNorm,
    ConvUnit,
    Dtype,
    LayerNorm,
    Mlp,
    conv,
    linear,
    torch_uniform,
)
from usam_jax.models.common.spec import ModelSpec, multiple_of, refuse_prompts
from usam_jax.models.transunet import Embeddings
from usam_jax.utils.errors import UsageError

SCALES = 4  # skips, the first at full size; tokens are 1/16 of the image in h and w for all
EPSILON = 1e-6  # of every LayerNorm
SCORE_EPSILON = 1e-5  # of the instance norm of the scores

Tokens = tuple[Float[Array, "b t _"], ...]


def upsample_nearest(x: Float[Array, "b h w d"], factor: int) -> Float[Array, "b i j d"]:
    """Repeat each pixel `factor` times along h and along w."""
    return x.repeat(factor, axis=1).repeat(factor, axis=2)


class Heads(nn.Module):
    """Linear layers of the full width without bias, one for each head."""

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t j d"]:
        d = x.shape[-1]
        kernel = self.param("kernel", torch_uniform(d), (self.num_heads, d, d)).astype(self.dtype)
        x = ops.matmul(x, kernel.swapaxes(0, 1).reshape(d, -1))
        return x.reshape(*x.shape[:2], self.num_heads, d)


class ChannelAttention(nn.Module):
    """Attention of each scale's channels to those of all scales, averaged over the heads.

    Every head has the full width. The scores of a head are normalised before the softmax.
    """

    num_heads: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, scales: Tokens, joint: Float[Array, "b t e"], train: bool) -> Tokens:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        k, v = (Heads(self.num_heads, self.dtype, name=x)(joint) for x in ("key", "value"))
        width = joint.shape[-1]
        one, zero = jnp.ones(width), jnp.zeros(width)
        found = []
        for i, x in enumerate(scales, start=1):
            q, d = Heads(self.num_heads, self.dtype, name=f"query{i}")(x), x.shape[-1]
            scores = jnp.einsum("btjd,btje->bjde", q, k, preferred_element_type=jnp.float32)
            scores = scores * width**-0.5
            scores = ops.normalise(scores, one, zero, axes=(2, 3), epsilon=SCORE_EPSILON)[0]
            weights = drop(jax.nn.softmax(scores, axis=-1)).astype(self.dtype)
            x = jnp.einsum("bjde,btje->btd", weights, v) / self.num_heads
            found.append(linear(d, d, self.dtype, f"out{i}", bias=False)(x))
        return tuple(found)


class Layer(nn.Module):
    """Pre-norm transformer layer on the tokens of all scales, each with its own MLP."""

    num_heads: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, scales: Tokens, train: bool) -> Tokens:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = ChannelAttention(self.num_heads, self.dropout, self.dtype, name="channel_attn")
        joint = LayerNorm(EPSILON, name="attn_norm")(jnp.concatenate(scales, axis=-1))
        normed = tuple(
            LayerNorm(EPSILON, name=f"attn_norm{i}")(x) for i, x in enumerate(scales, start=1)
        )
        found = []
        attended = attention(normed, joint, train)
        for i, (x, y) in enumerate(zip(scales, attended, strict=True), start=1):
            x = x + drop(y)
            mlp = Mlp(
                4 * x.shape[-1],
                ops.gelu,
                self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=nn.initializers.normal(1e-6),
                name=f"ffn{i}",
            )
            found.append(x + mlp(LayerNorm(EPSILON, name=f"ffn_norm{i}")(x)))
        return tuple(found)


class Reconstruct(nn.Module):
    """Tokens of a square map to a map `factor` times larger.

    The published code upsamples first, which commutes with the rest at `factor` ** 2 times the cost.
    """

    factor: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], shape: tuple[int, int], train: bool
    ) -> Float[Array, "b h w d"]:
        d = x.shape[-1]
        x = conv(d, d, 1, self.dtype, "conv")(x.reshape(-1, *shape, d))
        x = ops.relu(BatchNorm(repeats=self.factor**2, name="norm")(x, train))
        return upsample_nearest(x, self.factor)


class ChannelTransformer(nn.Module):
    """Skips to skips of the same shapes: channel attention between all of them, and a residual."""

    depth: int
    num_heads: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self, skips: Sequence[Float[Array, "b _ _ _"]], train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        factors = [2 ** (SCALES - i) for i in range(SCALES)]
        scales: Tokens = tuple(
            Embeddings(x.shape[-1], self.dropout, self.dtype, n, name=f"embeddings_{i}")(x, train)
            for i, (x, n) in enumerate(zip(skips, factors, strict=True), start=1)
        )
        for i in range(self.depth):
            scales = Layer(self.num_heads, self.dropout, self.dtype, name=f"layer_{i}")(
                scales, train
            )
        found = []
        for i, (x, skip, n) in enumerate(zip(scales, skips, factors, strict=True), start=1):
            x = LayerNorm(EPSILON, name=f"encoder_norm{i}")(x)
            shape = skip.shape[1] // n, skip.shape[2] // n
            reconstruct = Reconstruct(n, self.dtype, name=f"reconstruct_{i}")
            found.append(skip + reconstruct(x, shape, train))
        return tuple(found)


class ChannelGate(nn.Module):
    """Scale the channels of `skip` by numbers in (0, 1) from the means of `skip` and `signal`."""

    dtype: Dtype

    @nn.compact
    def __call__(
        self, signal: Float[Array, "b h w d"], skip: Float[Array, "b i j d"]
    ) -> Float[Array, "b i j d"]:
        d = skip.shape[-1]
        x = linear(d, d, self.dtype, "mlp_x")(skip.mean((1, 2)))
        x = x + linear(d, d, self.dtype, "mlp_g")(signal.mean((1, 2)))
        return skip * jax.nn.sigmoid(x / 2)[:, None, None]


class UpBlock(nn.Module):
    """Nearest upsampling to twice the size, concatenation with a gated skip, two `ConvUnit`s."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], skip: Float[Array, "b i j d"], train: bool
    ) -> Float[Array, "b i j f"]:
        skip = ChannelGate(self.dtype, name="coatt")(x, skip)
        x = jnp.concatenate([skip, upsample_nearest(x, 2)], axis=-1)
        x = ConvUnit(self.features, self.dtype, name="nConvs_0")(x, train)
        return ConvUnit(self.features, self.dtype, name="nConvs_1")(x, train)


class UCTransNet(nn.Module):
    """UCTransNet: a U-Net with a channel transformer on its four skips and gates in its decoder.

    Images are float32[b h w], grey in [0, 1], h and w multiples of 16. The tables of positions fit
    the size for which the variables were made. Returns logits float32[b h w k].
    Source: Wang et al., AAAI 2022, as in github.com/McGregorWwww/UCTransNet.
    """

    num_classes: int
    width: int
    depth: int
    num_heads: int
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w *c"], prompts: None = None, train: bool = False
    ) -> Float[Array, "b h w k"]:
        refuse_prompts(prompts)
        x, dtype = SPEC.input.normalize(images, self.dtype), self.dtype
        deepest = self.width * 2 ** (SCALES - 1)
        *skips, x = ConvEncoder(deepest, deepest, dtype, name="backbone")(x, train)
        transformer = ChannelTransformer(
            self.depth, self.num_heads, self.dropout, dtype, name="mtc"
        )
        skips = list(transformer(skips, train))
        for level in range(SCALES, 0, -1):
            features = self.width * 2 ** max(level - 2, 0)
            x = UpBlock(features, dtype, name=f"up{level}")(x, skips[level - 1], train)
        return conv(self.num_classes, self.width, 1, dtype, "outc")(x).astype(jnp.float32)


def uctransnet_config() -> ConfigDict:
    """Return the fields of `config.model` that UCTransNet has of its own."""
    config = ConfigDict()
    config.width = 64  # channels at full size, doubled on each of the three levels below
    config.depth = 4  # layers of the channel transformer
    config.num_heads = 4  # each of the full width
    config.dropout = 0.1  # of tokens, attention and its outputs
    return config


def build(config: ConfigDict) -> UCTransNet:
    """Return the module of `config.model`. Raises UsageError if a field is invalid."""
    for field in ("width", "depth", "num_heads"):
        if config[field] < 1:
            raise UsageError(f"config.model.{field}: got {config[field]}, expected 1 or more")
    if not 0 <= config.dropout < 1:
        raise UsageError(f"config.model.dropout: got {config.dropout}, expected 0 to below 1")
    return UCTransNet(
        num_classes=config.num_classes,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


SPEC = ModelSpec(
    config=uctransnet_config,
    build=build,
    image_size=multiple_of(2**SCALES),
    stochastic=True,
    paper="2109.04335",
    code="github.com/McGregorWwww/UCTransNet@493bd81",
    small={"width": 8, "depth": 1, "num_heads": 2},
)
