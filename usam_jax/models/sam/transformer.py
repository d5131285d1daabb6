"""SAM's two-way transformer: tokens and image attend to each other."""

import jax
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from usam_jax.models.common.layers import Dtype, LayerNorm, Mlp, linear

NUM_HEADS = 8


class CrossAttention(nn.Module):
    """Multi-head attention with its own inner width. `mask` is True for keys that count."""

    inner: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        q: Float[Array, "b n d"],
        k: Float[Array, "b m d"],
        v: Float[Array, "b m d"],
        mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b n d"]:
        b, n, d = q.shape

        def split_heads(x: Array, name: str) -> Array:
            x = linear(self.inner, d, self.dtype, name)(x)
            return x.reshape(b, -1, NUM_HEADS, self.inner // NUM_HEADS)

        q, k, v = split_heads(q, "q_proj"), split_heads(k, "k_proj"), split_heads(v, "v_proj")
        mask = mask if mask is None else mask[:, None, None]
        x = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(b, n, self.inner)
        return linear(d, self.inner, self.dtype, "out_proj")(x)


class TwoWayBlock(nn.Module):
    """One layer. The self-attention of the first layer has no positions and no residual."""

    first: bool
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        source: Float[Array, "b m d"],
        initial: Float[Array, "b n d"],
        position: Float[Array, "1 m d"],
        mask: Bool[Array, "b n"] | None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        d = tokens.shape[-1]

        def attention(inner: int, name: str) -> CrossAttention:
            return CrossAttention(inner, self.dtype, name=name)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(1e-5, name=name)

        self_attn = attention(d, "self_attn")
        if self.first:
            tokens = self_attn(tokens, tokens, tokens, mask)
        else:
            q = tokens + initial
            tokens = tokens + self_attn(q, q, tokens, mask)
        tokens = norm("norm1")(tokens)

        to_image = attention(d // 2, "cross_attn_token_to_image")
        tokens = norm("norm2")(tokens + to_image(tokens + initial, source + position, source))
        tokens = norm("norm3")(tokens + Mlp(8 * d, nn.relu, self.dtype, name="mlp")(tokens))

        to_tokens = attention(d // 2, "cross_attn_image_to_token")
        attended = to_tokens(source + position, tokens + initial, tokens, mask)
        return tokens, norm("norm4")(source + attended)


class TwoWayTransformer(nn.Module):
    """Two layers, then attention from tokens to image.

    Tokens whose `mask` is False do not affect the image or other tokens.
    """

    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        source: Float[Array, "b m d"],
        position: Float[Array, "1 m d"],
        mask: Bool[Array, "b n"] | None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b m d"]]:
        initial = tokens
        for i in range(2):
            block = TwoWayBlock(i == 0, self.dtype, name=f"layers_{i}")
            tokens, source = block(tokens, source, initial, position, mask)
        final = CrossAttention(tokens.shape[-1] // 2, self.dtype, name="final_attn_token_to_image")
        tokens = tokens + final(tokens + initial, source + position, source)
        return LayerNorm(1e-5, name="norm_final_attn")(tokens), source
