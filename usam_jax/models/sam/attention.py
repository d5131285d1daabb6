"""Self-attention of a square map with SAM's decomposed relative positions."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models.common.layers import Dtype, linear, product

VECTOR = 32  # numbers that a CPU's loops take at once, or a multiple


class Attention(nn.Module):
    """Multi-head self-attention of a square map, with relative positions along h and along w.

    A query's bias towards a key is `q . rel_pos_h[i_q - i_k]` plus the same along w, with q not
    scaled. Source: Segment Anything, image encoder (after MViTv2's decomposed positions).
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
        along_h, along_w = compare_relative(q, rel_h, rel_w)
        bias_h = pick_offsets(along_h.swapaxes(2, 3)).swapaxes(2, 3).reshape(b, n, t, s)
        bias_w = pick_offsets(along_w).reshape(b, n, t, s)
        q = q * head_dim**-0.5
        if 2 * s > head_dim:  # with `compare_biased`, the bias would be most of the product
            wide_h, wide_w = (x.astype(jnp.float32) for x in (bias_h, bias_w))
            logits = compare(q, k).reshape(b, n, t, s, s) + wide_h[..., None] + wide_w[..., None, :]
            logits = logits.reshape(b, n, t, t)
        else:
            logits = compare_biased(q, jnp.concatenate([bias_h, bias_w], axis=-1), k)

        x = weigh(logits, v).swapaxes(1, 2).reshape(b, s, s, d)
        return linear(d, d, self.dtype, "proj")(x)


def compare_relative(
    q: Float[Array, "b n t c"], rel_h: Float[Array, "o c"], rel_w: Float[Array, "o c"]
) -> tuple[Float[Array, "b n s s o"], Float[Array, "b n s s o"]]:
    """`q . rel_h` and `q . rel_w` for all offsets, from the largest down.

    One product; each table is filled up to whole vectors, else a CPU is slow to read its part.
    """
    b, n, t, _ = q.shape
    side, offsets = math.isqrt(t), len(rel_h)
    tables = jnp.stack([rel_h[::-1], rel_w[::-1]]).astype(q.dtype)
    tables = jnp.pad(tables, ((0, 0), (0, -offsets % VECTOR), (0, 0)))
    along = product(q, tables.reshape(-1, q.shape[-1]).T)
    along_h, along_w = jnp.split(along.reshape(b, n, side, side, -1), 2, axis=-1)
    return along_h[..., :offsets], along_w[..., :offsets]


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
    d_k = jnp.einsum("bnts,bntc->bnsc", gradient.astype(k.dtype), q.astype(k.dtype))
    return mix(gradient, k).astype(q.dtype), d_k


compare.defvjp(_compare_forward, _compare_backward)


@jax.custom_vjp
def mix(weights: Float[Array, "b n t s"], v: Float[Array, "b n s e"]) -> Float[Array, "b n t e"]:
    """`weights` times `v`, in the types of `compare`.

    Not as `compare` with `v` transposed, since XLA on a CPU makes that copy.
    """
    weights = weights.astype(v.dtype)
    return jnp.einsum("bnts,bnse->bnte", weights, v, preferred_element_type=jnp.float32)


def _mix_forward(weights: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
    return mix(weights, v), (weights, v)


def _mix_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    weights, v = saved
    d_v = jnp.einsum("bnts,bnte->bnse", weights.astype(v.dtype), gradient.astype(v.dtype))
    return compare(gradient, v).astype(weights.dtype), d_v


mix.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def compare_biased(
    q: Float[Array, "b n t c"], bias: Float[Array, "b n t r"], k: Float[Array, "b n t c"]
) -> Float[Array, "b n t t"]:
    """`compare`, plus a query's bias towards each row and each column, one behind the other.

    Both in one product: behind its channels a query has its biases, a key has ones at its own row
    and column. These need no gradient, so theirs is a product for all heads.
    """
    own = own_places(k)
    keys = jnp.concatenate([k, jnp.broadcast_to(own, (*k.shape[:2], *own.shape))], axis=-1)
    return compare(jnp.concatenate([q, bias], axis=-1), keys)


def own_places(k: Float[Array, "b n t c"]) -> Float[Array, "t r"]:
    """Ones at the row and the column of each key of a square map."""
    side = math.isqrt(k.shape[2])
    one = jnp.eye(side, dtype=k.dtype)
    return jnp.concatenate([jnp.repeat(one, side, axis=0), jnp.tile(one, (side, 1))], axis=-1)


def _compare_biased_forward(q: Array, bias: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return compare_biased(q, bias, k), (q, k)


def _compare_biased_backward(
    saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    k = saved[1]
    d_q, d_k = _compare_backward(saved, gradient)
    return d_q, gradient.astype(k.dtype) @ own_places(k), d_k


compare_biased.defvjp(_compare_biased_forward, _compare_biased_backward)


def weigh(logits: Float[Array, "b n t s"], v: Float[Array, "b n s e"]) -> Float[Array, "b n t e"]:
    """Softmax, in float32, times `v`; divided last, where there is least to divide."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    return (mix(weights, v) / weights.sum(-1, keepdims=True)).astype(v.dtype)
