"""SAM's vision transformer: windowed and global attention with decomposed relative positions."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models.layers import Dtype, GreyConv, LayerNorm, Mlp, conv, gelu, linear


class Attention(nn.Module):
    """Multi-head self-attention of a square map, with relative positions along h and along w.

    A query's bias towards a key is `q . rel_pos_h[i_q - i_k]` plus the same along w, with q not
    scaled. On a small map both are part of the product of queries and keys: behind its channels a
    query has its bias towards each row and column, a key has ones at its own. On a large map that
    would be most of the product, and they are added to it. Source: Segment Anything, image encoder
    (after MViTv2's decomposed positions).
    """

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b s s d"]) -> Float[Array, "b s s d"]:
        b, s, _, d = x.shape
        n, t, head_dim = self.num_heads, s * s, d // self.num_heads
        qkv = linear(3 * d, d, self.dtype, "qkv")(x)
        q, k, v = (y.reshape(b, t, n, head_dim).swapaxes(1, 2) for y in jnp.split(qkv, 3, axis=-1))

        zeros = nn.initializers.zeros
        rel_h = self.param("rel_pos_h", zeros, (2 * s - 1, head_dim))
        rel_w = self.param("rel_pos_w", zeros, (2 * s - 1, head_dim))
        relative = jnp.concatenate([rel_h[::-1], rel_w[::-1]]).T.astype(self.dtype)
        along_h, along_w = jnp.split((q @ relative).reshape(b, n, s, s, -1), 2, axis=-1)
        bias_h = pick_offsets(along_h.swapaxes(2, 3)).swapaxes(2, 3).reshape(b, n, t, s)
        bias_w = pick_offsets(along_w).reshape(b, n, t, s)
        q = q * head_dim**-0.5
        if 2 * s > head_dim:
            wide_h, wide_w = (x.astype(jnp.float32) for x in (bias_h, bias_w))
            logits = compare(q, k).reshape(b, n, t, s, s) + wide_h[..., None] + wide_w[..., None, :]
            logits = logits.reshape(b, n, t, t)
        else:
            one = jnp.eye(s, dtype=self.dtype)
            own = jnp.concatenate([jnp.repeat(one, s, axis=0), jnp.tile(one, (s, 1))], axis=-1)
            own = jnp.broadcast_to(own, (b, n, t, 2 * s))
            logits = compare(
                jnp.concatenate([q, bias_h, bias_w], axis=-1), jnp.concatenate([k, own], axis=-1)
            )

        x = weigh(logits, v).swapaxes(1, 2).reshape(b, s, s, d)
        return linear(d, d, self.dtype, "proj")(x)


def pick_offsets(x: Float[Array, "*n s o"]) -> Float[Array, "*n s s"]:
    """Row i of `x` has a number for each offset from s-1 down to 1-s (o = 2s-1), row i of the
    result those from i down to i-(s-1), one for each key.

    They begin one further in row i than in row i+1: in rows that are one shorter, all in one column.
    """
    *lead, s, _ = x.shape
    width = max(2 * s - 2, 1)
    flat = x.reshape(*lead, -1)[..., s - 1 : s - 1 + s * width]
    return flat.reshape(*lead, s, width)[..., :s]


@jax.custom_vjp
def compare(q: Float[Array, "b n t c"], k: Float[Array, "b n s c"]) -> Float[Array, "b n t s"]:
    """`q . k`, multiplied in the type of `k`, summed and given in float32; gradients likewise."""
    return jnp.einsum("bntc,bnsc->bnts", q.astype(k.dtype), k, preferred_element_type=jnp.float32)


def _compare_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return compare(q, k), (q, k)


def _compare_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    q, k = saved
    gradient = gradient.astype(k.dtype)
    d_q = jnp.einsum("bnts,bnsc->bntc", gradient, k, preferred_element_type=jnp.float32)
    d_k = jnp.einsum("bnts,bntc->bnsc", gradient, q.astype(k.dtype))
    return d_q.astype(q.dtype), d_k


compare.defvjp(_compare_forward, _compare_backward)


def weigh(logits: Float[Array, "b n t s"], v: Float[Array, "b n s e"]) -> Float[Array, "b n t e"]:
    """Softmax, in float32, times `v`; divided last, where there is least to divide."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    x = compare(weights, v.swapaxes(2, 3))
    return (x / weights.sum(-1, keepdims=True)).astype(v.dtype)


def split_windows(x: Float[Array, "b h w d"], window: int) -> Float[Array, "n s s d"]:
    """Non-overlapping windows of a map that is zero-padded at the bottom and right to fit."""
    b, h, w, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, d)
    return x.swapaxes(2, 3).reshape(-1, window, window, d)


def join_windows(x: Float[Array, "n s s d"], shape: tuple[int, ...]) -> Float[Array, "b h w d"]:
    """The map of `shape` (b, h, w, d) that `split_windows` took apart, without its padding."""
    b, h, w, d = shape
    window = x.shape[1]
    rows, columns = -(-h // window), -(-w // window)
    x = x.reshape(b, rows, columns, window, window, d).swapaxes(2, 3)
    return x.reshape(b, rows * window, columns * window, d)[:, :h, :w]


class Block(nn.Module):
    """Pre-norm transformer block; `window` 0 attends globally."""

    num_heads: int
    window: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        attention = Attention(self.num_heads, self.dtype, name="attn")
        y = LayerNorm(1e-6, name="norm1")(x)
        if self.window:
            y = join_windows(attention(split_windows(y, self.window)), y.shape)
        else:
            y = attention(y)
        x = x + y
        mlp = Mlp(4 * x.shape[-1], gelu, self.dtype, name="mlp")
        return x + mlp(LayerNorm(1e-6, name="norm2")(x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches of the image to tokens."""

    width: int
    patch_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 1"]) -> Float[Array, "b i j d"]:
        size = self.patch_size
        return GreyConv(self.width, size, size, self.dtype, name="proj")(x)


class ImageEncoder(nn.Module):
    """The transformer and its neck: a map at 1/16 of the image's size to its embedding.

    With `patch_size` 0 the input is the convolutional encoder's f4; otherwise it is the image,
    and SAM's own patch embedding comes first (the paper's first design, its row S).
    """

    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window: int
    width: int
    dim: int
    patch_size: int
    dtype: Dtype
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        if self.patch_size:
            x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        shape = (1, *x.shape[1:])
        x = x + self.param("pos_embed", nn.initializers.zeros, shape).astype(self.dtype)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            window = 0 if i in self.global_blocks else self.window
            x = block(self.num_heads, window, self.dtype, name=f"blocks_{i}")(x)
        x = conv(self.dim, self.width, 1, self.dtype, "neck_0", bias=False)(x)
        x = LayerNorm(1e-6, name="neck_1")(x)
        x = conv(self.dim, self.dim, 3, self.dtype, "neck_2", bias=False)(x)
        return LayerNorm(1e-6, name="neck_3")(x)
