"""The forms of `ops` that XLA:CPU compiles to faster code.

Each form states what XLA does to the reference, then the gain that was measured: ViT-B in float32
at 224x224 with 4 slices on two cores unless stated otherwise. Custom gradients are for reverse
differentiation only.
"""

import math
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from usam_jax.models.ops.conv import convolve, pixel_kernel, pixel_shuffle, same_padding

Moments = Callable[[Array, tuple[int, ...]], tuple[Array, Array]]


@jax.custom_vjp
def matmul(x: Float[Array, "*n d"], kernel: Float[Array, "d e"]) -> Float[Array, "*n e"]:
    """`x @ kernel`, with the kernel's gradient as `x.T @ gradient`.

    JAX's own is `(gradient.T @ x).T`. XLA fuses the transpose with the sums of the residual
    stream's gradients from all later layers, so time grows with the square of the depth (step
    1.53 to 1.75 s -> 1.24 to 1.35 s a slice).
    """
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, gradients = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
    return gradient @ kernel.T, rows.T @ gradients


matmul.defvjp(_matmul_forward, _matmul_backward)


def relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """ReLU as a `where`.

    XLA recomputes `maximum(x, 0)`, and everything elementwise before it, in the transposed copy of
    a convolution's input that the kernel's gradient reads (step 2.59 s -> 2.43 s).
    """
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU by erf, as torch writes it, in half the time of JAX's form by erfc."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def max_pool(x: Float[Array, "b h w d"], *, window: int = 2) -> Float[Array, "b i j d"]:
    """Maximum of each window with stride 2, as maxima of slices.

    The gradient of a window writes the indices of all pixels (with `gelu`: step 1.01 to 1.05 s ->
    0.96 to 1.03 s a slice). Of equal maxima each gets a share of the gradient, not the first one
    all of it.
    """
    b, h, w, d = x.shape
    if window != 2:
        rows, columns = (2 * ((n - window) // 2) + 1 for n in (h, w))
        x = reduce(jnp.maximum, (x[:, i : i + rows : 2] for i in range(window)))
        return reduce(jnp.maximum, (x[:, :, i : i + columns : 2] for i in range(window)))
    x = x.reshape(b, h // 2, 2, w // 2, 2, d)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def normalise(
    x: Float[Array, "*n d"],
    scale: Float[Array, "*c"],
    bias: Float[Array, "*c"],
    *,
    axes: tuple[int, ...],
    epsilon: float,
) -> tuple[Float[Array, "*n d"], Array, Array]:
    """`norm.normalise` with its gradient written out.

    JAX's own takes twice as many sums and keeps twice as many arrays (CPU time of a step 6.5 s ->
    5.6 s, compiling 14.6 s -> 10.2 s).
    """
    return normalise_by(two_passes, x, scale, bias, axes, epsilon)


def two_passes(wide: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and variance of `wide` along `axes`, which stay as axes of size 1."""
    mean = wide.mean(axes, keepdims=True)
    return mean, jnp.square(wide - mean).mean(axes, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def normalise_by(
    moments: Moments, x: Array, scale: Array, bias: Array, axes: tuple[int, ...], epsilon: float
) -> tuple[Array, Array, Array]:
    """`norm.normalise` by `moments(x, axes)`, with its gradient written out."""
    return _normalise_forward(moments, x, scale, bias, axes, epsilon)[0]


def _normalise_forward(
    moments: Moments, x: Array, scale: Array, bias: Array, axes: tuple[int, ...], epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean, variance = moments(wide, axes)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse * scale + bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalise_backward(
    _moments: Moments,
    axes: tuple[int, ...],
    _epsilon: float,
    saved: tuple[Array, ...],
    gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = saved
    gradient = gradients[0].astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * inverse
    others = tuple(range(x.ndim - scale.ndim))
    d_scale, d_bias = (gradient * y).sum(others), gradient.sum(others)
    if axes == others:  # The same sums, so devices exchange them once.
        count = x.size // scale.size
        level, slope = scale * d_bias / count, scale * d_scale / count
    else:
        level = (gradient * scale).mean(axes, keepdims=True)
        slope = (gradient * scale * y).mean(axes, keepdims=True)
    # End in a subtraction: XLA:CPU then materialises the result; a final multiply would be fused
    # into every consumer again (step 2.60 s -> 2.54 s, with the sum in `up_concat_conv`).
    d_x = inverse * (gradient * scale - level) - y * (inverse * slope)
    return d_x.astype(x.dtype), d_scale, d_bias


normalise_by.defvjp(_normalise_forward, _normalise_backward)


@jax.custom_vjp
def depthwise_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l 1 d"]
) -> Float[Array, "b h w d"]:
    """`conv.depthwise_conv` as a sum, in float32, over the kernel's taps of shifted maps.

    XLA has no fast convolution by groups, and the kernel's gradient is a loop over the taps since
    XLA takes five times as long for all of them at once, and seconds to compile (7x7 on two maps of
    56x56 with 96 channels, one core: 82 ms forward and 262 ms with gradients -> 3 ms and 27 ms).
    """
    _, h, w, _ = x.shape
    wide = pad_same(x, kernel).astype(jnp.float32)
    taps = (
        wide[:, i : i + h, j : j + w] * kernel[i, j, 0] for i, j in np.ndindex(kernel.shape[:2])
    )
    return reduce(jnp.add, taps).astype(x.dtype)


def pad_same(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l ..."]
) -> Float[Array, "b i j d"]:
    """Zeros around a map with which a convolution keeps its size."""
    rows, columns = same_padding(kernel)
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _depthwise_conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_conv_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    padded = pad_same(x, kernel)

    def of_tap(tap: Array) -> Array:
        shifted = jax.lax.dynamic_slice(padded, (0, *tap, 0), x.shape)
        return (shifted.astype(jnp.float32) * gradient).sum((0, 1, 2))

    taps = jnp.asarray(list(np.ndindex(kernel.shape[:2])))
    d_kernel = jax.lax.map(of_tap, taps).reshape(kernel.shape).astype(kernel.dtype)
    return depthwise_conv(gradient, kernel[::-1, ::-1]), d_kernel


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)


def up_conv(
    x: Float[Array, "b *s d"], kernel: Float[Array, "*m d e"], bias: Float[Array, " e"]
) -> Float[Array, "b *o e"]:
    """`conv.up_conv` with this module's `matmul`."""
    return pixel_shuffle(matmul(x, pixel_kernel(kernel)), kernel.shape[:-2]) + bias


def up_concat_conv(
    x: Float[Array, "b h w d"],
    skip: Float[Array, "b i j s"] | None,
    up_kernel: Float[Array, "m n d e"],
    up_bias: Float[Array, " e"],
    kernel: Float[Array, "k l c f"],
    bias: Float[Array, " f"],
) -> Float[Array, "b i j f"]:
    """`conv.up_concat_conv` with both convolutions of `x` joined if the map is large enough.

    No map is made between them (the four of a decoder: 104 ms forward and 390 ms with gradients ->
    69 ms and 276 ms).
    """
    if not joins(x, up_kernel, kernel):
        x = up_conv(x, up_kernel, up_bias)
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        return convolve(x, kernel, padding=same_padding(kernel)) + bias
    upper, lower = kernel[:, :, : up_bias.size], kernel[:, :, up_bias.size :]
    x = up_conv_conv(x, up_kernel, up_bias, upper)
    # End in the sum of both maps: if the bias came last, XLA would shuffle pixels for each use.
    return x + (bias if skip is None else convolve(skip, lower, padding=1) + bias)


def joins(
    x: Float[Array, "b h w d"], up_kernel: Float[Array, "m n d e"], kernel: Float[Array, "k l c f"]
) -> bool:
    """Whether both convolutions of `x` can be joined, and joining their kernels pays."""
    _, h, w, d = x.shape
    joinable = (up_kernel.shape[:2], kernel.shape[:2]) == ((2, 2), (3, 3))
    return joinable and h * w > d  # else joining the kernels would take as long as it saves


def up_conv_conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "2 2 d e"],
    bias: Float[Array, " e"],
    second: Float[Array, "3 3 e f"],
) -> Float[Array, "b i j f"]:
    """`up_conv`, then a zero-padded 3x3 convolution, as one convolution of `x`.

    Both are linear, so their kernels join at each call into one transposed 4x4 convolution with
    stride 2, which takes 4 products for each pixel and pair of channels instead of 9 and those of
    `up_conv`. Tap s of the first and tap u of the second make tap 1 - s + u. Rows i-1 and i of the
    input give rows 2i-1 (taps 3 and 1) and 2i (taps 2 and 0) of the output, so 2x2 inputs give 2x2
    outputs. The first bias ends at the border of the map, so it is the kernel of a channel of ones.
    """
    b, h, w, _ = x.shape
    first = jnp.concatenate([kernel[::-1, ::-1], jnp.broadcast_to(bias, (2, 2, 1, bias.size))], 2)
    both = joined_kernel(first, second)
    x = jnp.concatenate([x, jnp.ones((b, h, w, 1), x.dtype)], axis=-1)
    # Pad apart: XLA has slow gradients for a convolution whose output is larger than its input.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return pixel_shuffle(convolve(x, both, padding=0), (2, 2))[:, 1:-1, 1:-1]


def joined_kernel(
    first: Float[Array, "2 2 d e"], second: Float[Array, "3 3 e f"]
) -> Float[Array, "2 2 d g"]:
    """The kernel of `up_conv_conv`: d channels to 2x2 pixels of f channels each, g = 4 f."""
    d, f = first.shape[2], second.shape[-1]
    taps = jnp.einsum("stde,uvef->stuvdf", first, second)
    both = jnp.zeros((4, 4, d, f), first.dtype)
    for s, t in np.ndindex(2, 2):
        both += jnp.pad(taps[s, t], ((1 - s, s), (1 - t, t), (0, 0), (0, 0)))
    both = both.reshape(2, 2, 2, 2, d, f)[:, ::-1, :, ::-1]  # Row of input, of output; columns.
    return both.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, d, 4 * f)


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
