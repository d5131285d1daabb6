"""The forms of attention that XLA:CPU compiles to faster code: see `cpu`."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from usam_jax.models.ops.cpu import matmul


def relative_attention(
    q: Float[Array, "b t n c"],
    k: Float[Array, "b t n c"],
    v: Float[Array, "b t n c"],
    rel_pos_h: Float[Array, "o c"],
    rel_pos_w: Float[Array, "o c"],
) -> Float[Array, "b t n c"]:
    """`attention.relative_attention` with heads moved forward.

    Heads left in place take 6.1 ms a block instead of 3.1 ms.
    """
    q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
    b, n, t, c = q.shape
    s = math.isqrt(t)
    along_h, along_w = relative_logits(q, rel_pos_h, rel_pos_w)
    bias_h = relative_to_absolute(along_h.swapaxes(2, 3)).swapaxes(2, 3).reshape(b, n, t, s)
    bias_w = relative_to_absolute(along_w).reshape(b, n, t, s)
    q = q * c**-0.5
    if 2 * s > c:  # In `qk_logits_biased`, the bias would be most of the product.
        wide_h, wide_w = (x.astype(jnp.float32) for x in (bias_h, bias_w))
        logits = qk_logits(q, k).reshape(b, n, t, s, s) + wide_h[..., None] + wide_w[..., None, :]
        logits = logits.reshape(b, n, t, t)
    else:
        logits = qk_logits_biased(q, jnp.concatenate([bias_h, bias_w], axis=-1), k)
    return softmax_attend(logits, v).swapaxes(1, 2)


def self_attention(
    q: Float[Array, "b t n c"],
    k: Float[Array, "b s n c"],
    v: Float[Array, "b s n c"],
    bias: Float[Array, "w n t s"] | None,
) -> Float[Array, "b t n c"]:
    """`attention.self_attention` with heads moved forward."""
    q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
    logits = qk_logits(q * q.shape[-1] ** -0.5, k)
    if bias is not None:
        logits = (logits.reshape(-1, *bias.shape) + bias).reshape(logits.shape)
    return softmax_attend(logits, v).swapaxes(1, 2)


def relative_logits(
    q: Float[Array, "b n t c"], rel_pos_h: Float[Array, "o c"], rel_pos_w: Float[Array, "o c"]
) -> tuple[Float[Array, "b n s s o"], Float[Array, "b n s s o"]]:
    """`q . rel_pos_h` and `q . rel_pos_w` for all offsets, from the largest down.

    One product for both, without transposed copies of q (with q, k and v by a split: attention of a
    block 19.5 ms forward and 63 ms with gradients -> 17.5 ms and 59.5 ms).
    """
    b, n, t, _ = q.shape
    s = math.isqrt(t)
    tables = jnp.concatenate([rel_pos_h[::-1], rel_pos_w[::-1]]).astype(q.dtype)
    along_h, along_w = jnp.split(matmul(q, tables.T).reshape(b, n, s, s, -1), 2, axis=-1)
    return along_h, along_w


def relative_to_absolute(x: Float[Array, "*n s o"]) -> Float[Array, "*n s s"]:
    """`out[..., i, k] = x[..., i, (s - 1) - (i - k)]`, with o = 2 s - 1 offsets.

    Row i of the result starts one further in `x` than row i + 1. Rows that are one shorter have all
    starts in one column, so slices and reshapes suffice and no gather is needed.
    """
    *lead, s, _ = x.shape
    width = max(2 * s - 2, 1)
    flat = x.reshape(*lead, -1)[..., s - 1 : s - 1 + s * width]
    return flat.reshape(*lead, s, width)[..., :s]


@jax.custom_vjp
def qk_logits(q: Float[Array, "b n t c"], k: Float[Array, "b n s c"]) -> Float[Array, "b n t s"]:
    """`q . k`, multiplied in the dtype of `k`, summed and returned in float32.

    Gradients likewise.

    JAX's own gradient multiplies in float32.
    """
    return jnp.einsum("bntc,bnsc->bnts", q.astype(k.dtype), k, preferred_element_type=jnp.float32)


def _qk_logits_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return qk_logits(q, k), (q, k)


def _qk_logits_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    q, k = saved
    d_k = jnp.einsum("bnts,bntc->bnsc", gradient.astype(k.dtype), q.astype(k.dtype))
    return attend(gradient, k).astype(q.dtype), d_k


qk_logits.defvjp(_qk_logits_forward, _qk_logits_backward)


@jax.custom_vjp
def attend(weights: Float[Array, "b n t s"], v: Float[Array, "b n s e"]) -> Float[Array, "b n t e"]:
    """`weights @ v`, in the dtypes of `qk_logits`.

    `qk_logits` of `v` transposed would be the same, but XLA makes that copy.
    """
    weights = weights.astype(v.dtype)
    return jnp.einsum("bnts,bnse->bnte", weights, v, preferred_element_type=jnp.float32)


def _attend_forward(weights: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
    return attend(weights, v), (weights, v)


def _attend_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    weights, v = saved
    d_v = jnp.einsum("bnts,bnte->bnse", weights.astype(v.dtype), gradient.astype(v.dtype))
    return qk_logits(gradient, v).astype(weights.dtype), d_v


attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def qk_logits_biased(
    q: Float[Array, "b n t c"], bias: Float[Array, "b n t r"], k: Float[Array, "b n t c"]
) -> Float[Array, "b n t t"]:
    """`qk_logits` plus the bias of a query towards each row, then each column, of the keys' map.

    One product makes both: a query's channels are followed by its biases, a key's channels by ones
    at its own row and column (attention of a block 17 ms forward and 56 ms with gradients -> 11 ms
    and 35 ms). The ones need no gradient, and that of the biases is one product for all heads
    (without the linear layers, with gradients: 21.8 ms -> 17.9 ms).
    """
    ones = key_positions(k)
    keys = jnp.concatenate([k, jnp.broadcast_to(ones, (*k.shape[:2], *ones.shape))], axis=-1)
    return qk_logits(jnp.concatenate([q, bias], axis=-1), keys)


def key_positions(k: Float[Array, "b n t c"]) -> Float[Array, "t r"]:
    """One-hot row, then one-hot column, of each key of a square map."""
    s = math.isqrt(k.shape[2])
    one_hot = jnp.eye(s, dtype=k.dtype)
    return jnp.concatenate([jnp.repeat(one_hot, s, axis=0), jnp.tile(one_hot, (s, 1))], axis=-1)


def _qk_logits_biased_forward(q: Array, bias: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return qk_logits_biased(q, bias, k), (q, k)


def _qk_logits_biased_backward(
    saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    k = saved[1]
    d_q, d_k = _qk_logits_backward(saved, gradient)
    return d_q, gradient.astype(k.dtype) @ key_positions(k), d_k


qk_logits_biased.defvjp(_qk_logits_biased_forward, _qk_logits_biased_backward)


def softmax_attend(
    logits: Float[Array, "b n t s"], v: Float[Array, "b n s e"]
) -> Float[Array, "b n t e"]:
    """`softmax(logits) @ v` with a float32 softmax.

    Divides the result, which is smaller than the weights (part of the gain of `qk_logits_biased`).
    """
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    return (attend(weights, v) / weights.sum(-1, keepdims=True)).astype(v.dtype)
