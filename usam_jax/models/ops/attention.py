"""Self-attention of a square map with decomposed relative positions, and with any bias."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def relative_attention(
    q: Float[Array, "b t n c"],
    k: Float[Array, "b t n c"],
    v: Float[Array, "b t n c"],
    rel_pos_h: Float[Array, "o c"],
    rel_pos_w: Float[Array, "o c"],
) -> Float[Array, "b t n c"]:
    """`softmax(q k / sqrt(c) + bias) v` over the t = s * s positions of a map (o = 2 s - 1).

    `bias[i, j] = q[i] . rel_pos_h[y_i - y_j + s - 1] + q[i] . rel_pos_w[x_i - x_j + s - 1]`, with q
    not scaled. Logits and softmax are float32.
    """
    b, t, n, c = q.shape
    s = math.isqrt(t)
    offsets = jnp.arange(s)[:, None] - jnp.arange(s)[None] + s - 1
    table_h, table_w = (table[offsets].astype(q.dtype) for table in (rel_pos_h, rel_pos_w))
    grid = q.reshape(b, s, s, n, c)
    bias_h = jnp.einsum("byxnc,ykc->bnyxk", grid, table_h)[..., :, None]
    bias_w = jnp.einsum("byxnc,xkc->bnyxk", grid, table_w)[..., None, :]
    bias = (bias_h.astype(jnp.float32) + bias_w.astype(jnp.float32)).reshape(b, n, t, t)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=c**-0.5)


def self_attention(
    q: Float[Array, "b t n c"],
    k: Float[Array, "b s n c"],
    v: Float[Array, "b s n c"],
    bias: Float[Array, "w n t s"] | None,
) -> Float[Array, "b t n c"]:
    """`softmax(q k / sqrt(c) + bias) v`, row i with `bias[i % w]` if any, where w divides b.

    Logits and softmax are float32.
    """
    if bias is None:
        return jax.nn.dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
    w = bias.shape[0]
    q, k, v = (x.reshape(-1, w, *x.shape[1:]) for x in (q * q.shape[-1] ** -0.5, k, v))
    logits = jnp.einsum("bwtnc,bwsnc->bwnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(v.dtype)
    return jnp.einsum("bwnts,bwsnc->bwtnc", weights, v).reshape(-1, *v.shape[2:])
