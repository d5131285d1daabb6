"""The forms of `ops` that XLA compiles to faster code for NVIDIA's GPUs.

They are traced in a process that has a GPU, or inside `forms(True)`, and lowered for CUDA alone.
Each form states what the compiler does to the reference, then the gain: ViT-B in bfloat16 with 32
slices compiled for an H100. These gains are predicted (docs/performance.md), not measured.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from usam_jax.models.ops import attention, conv, cpu, cpu_attention, cpu_conv
from usam_jax.utils import console

LOW_PRECISION = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
MAX_WIDTH = 128  # channels of a head; more than 128 need a GPU newer than Ampere
MIN_PIXELS = 2**14  # of a batch's map, to join convolutions
MIN_CAPABILITY = 8.0  # Ampere
_WANTED: ContextVar[bool | None] = ContextVar("gpu_forms", default=None)


@contextlib.contextmanager
def forms(wanted: bool) -> Iterator[None]:
    """Trace these forms, or never, whatever devices this process has.

    True compiles for a GPU that is not there, False exports programs that run on any GPU.
    """
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def wanted() -> bool:
    """Return whether programs that are traced now contain these forms."""
    chosen = _WANTED.get()
    return jax.default_backend() == "gpu" if chosen is None else chosen


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`activation.gelu` by erf, as in `cpu.gelu`.

    XLA writes the float32 values of erfc for the gradient of JAX's own, and computes erf again (a
    transformer block 1.00 -> 0.93 ms).
    """
    return cpu.gelu(x)


def normalise(
    x: Float[Array, "*n d"],
    scale: Float[Array, "*c"],
    bias: Float[Array, "*c"],
    *,
    axes: tuple[int, ...],
    epsilon: float,
) -> tuple[Float[Array, "*n d"], Array, Array]:
    """`norm.normalise` with one pass for mean and variance if `x` is bfloat16 or float16.

    The gradient is `cpu.normalise`'s, which writes fewer float32 arrays (a conv unit at full size
    0.68 -> 0.55 ms). The variance is the mean of squares less the square of the mean, in float32:
    its error, some 2**-24 of the squared mean, is far below that of the rounded input, 2**-18 of
    it. A float32 input has no such error, so it keeps two passes. Over several devices, both sums
    are exchanged at once.
    """
    if x.dtype in LOW_PRECISION:
        return cpu.normalise_by(one_pass, x, scale, bias, axes, epsilon)
    return cpu.normalise(x, scale, bias, axes=axes, epsilon=epsilon)


def one_pass(wide: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and variance of `wide` along `axes`, as `cpu.two_passes`."""
    mean = wide.mean(axes, keepdims=True)
    square = jnp.square(wide).mean(axes, keepdims=True)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def up_concat_conv(
    x: Float[Array, "b h w d"],
    skip: Float[Array, "b i j s"] | None,
    up_kernel: Float[Array, "m n d e"],
    up_bias: Float[Array, " e"],
    kernel: Float[Array, "k l c f"],
    bias: Float[Array, " f"],
) -> Float[Array, "b i j f"]:
    """`conv.up_concat_conv` with both convolutions of `x` joined if there are enough pixels.

    No map is made between them (the decoder's last block 2.19 -> 1.63 ms). With few, as in a
    click, the kernels that join the kernels take longer.
    """
    if not cpu_conv.joins(x, up_kernel, kernel) or math.prod(x.shape[:3]) < MIN_PIXELS:
        return conv.up_concat_conv(x, skip, up_kernel, up_bias, kernel, bias)
    upper, lower = kernel[:, :, : up_bias.size], kernel[:, :, up_bias.size :]
    x = up_conv_conv(x, up_kernel, up_bias, upper)
    return x + (bias if skip is None else conv.convolve(skip, lower, padding=1) + bias)


def up_conv_conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "2 2 d e"],
    bias: Float[Array, " e"],
    second: Float[Array, "3 3 e f"],
) -> Float[Array, "b i j f"]:
    """`cpu_conv.up_conv_conv` with the first bias as a map of its own.

    So channels stay a multiple of 8. The barrier keeps the padding out of the convolution: XLA
    would fold it in and turn the kernel's gradient into a convolution whose window is the whole
    map, which cuDNN may not have.
    """
    _, h, w, _ = x.shape
    both = cpu_conv.joined_kernel(kernel[::-1, ::-1], second)
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    x = conv.pixel_shuffle(conv.convolve(x, both, padding=0), (2, 2))[:, 1:-1, 1:-1]
    ones = cpu_conv.joined_kernel(jnp.broadcast_to(bias, (2, 2, 1, bias.size)), second)
    inside = jnp.pad(jnp.ones((1, h, w, 1), x.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
    of_bias = conv.convolve(inside, ones, padding=0)
    return x + conv.pixel_shuffle(of_bias, (2, 2))[:, 1:-1, 1:-1]


def relative_attention(
    q: Float[Array, "b t n c"],
    k: Float[Array, "b t n c"],
    v: Float[Array, "b t n c"],
    rel_pos_h: Float[Array, "o c"],
    rel_pos_w: Float[Array, "o c"],
) -> Float[Array, "b t n c"]:
    """`attention.relative_attention` by cuDNN, if it takes the dtype and the heads' width.

    XLA writes and reads logits and weights [b n t t] several times; cuDNN keeps them on the chip
    (a transformer block 1.53 -> 0.98 ms). Otherwise the reason is printed once.
    """
    b, t, n, c = q.shape
    if reason := cudnn_refusal((b, t, n, head_width(q)), q.dtype.name):
        say_once(f"attention without cuDNN, which is slower: {reason}")
        return attention.relative_attention(q, k, v, rel_pos_h, rel_pos_w)
    return by_cudnn(*with_bias_channels(q, k, v, rel_pos_h, rel_pos_w))[..., :c]


def head_width(q: Float[Array, "b t n c"]) -> int:
    """Channels of a head with those of the bias, as a multiple of 8."""
    return math.ceil((q.shape[-1] + 2 * math.isqrt(q.shape[1])) / 8) * 8


def with_bias_channels(
    q: Float[Array, "b t n c"],
    k: Float[Array, "b t n c"],
    v: Float[Array, "b t n c"],
    rel_pos_h: Float[Array, "o c"],
    rel_pos_w: Float[Array, "o c"],
) -> tuple[Float[Array, "b t n d"], Float[Array, "b t n d"], Float[Array, "b t n d"]]:
    """Queries, keys and values of which plain attention with scale 1 is the relative one.

    A query's channels are followed by its biases towards each row and column of the keys' map, a
    key's channels by ones at its own row and column, as in `cpu_attention.qk_logits_biased`. So no bias has
    to be rounded or given a gradient by cuDNN. Zeros fill the width up to a multiple of 8.
    """
    b, t, n, c = q.shape
    s = math.isqrt(t)
    tables = jnp.concatenate([rel_pos_h[::-1], rel_pos_w[::-1]]).astype(q.dtype)
    along = (q @ tables.T).reshape(b, s, s, n, 2, 2 * s - 1)
    bias_h = cpu_attention.relative_to_absolute(along[..., 0, :].transpose(0, 2, 3, 1, 4))
    bias_w = cpu_attention.relative_to_absolute(along[..., 1, :].swapaxes(2, 3))
    bias_h = bias_h.transpose(0, 3, 1, 2, 4).reshape(b, t, n, s)
    bias_w = bias_w.swapaxes(2, 3).reshape(b, t, n, s)
    width, ones = head_width(q), cpu_attention.key_positions(k.swapaxes(1, 2))[:, None]
    q = jnp.concatenate([q * c**-0.5, bias_h, bias_w], -1)
    k = jnp.concatenate([k, jnp.broadcast_to(ones, (b, t, n, 2 * s))], -1)
    q, k, v = (jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in (q, k, v))
    return q, k, v


def by_cudnn(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")


@functools.cache
def cudnn_refusal(shape: tuple[int, ...], dtype: str) -> str:
    """Why cuDNN does not compute attention and its gradient, or an empty string if it does.

    `shape` is that of q, k and v.
    """
    if jnp.dtype(dtype) not in LOW_PRECISION:
        return f"got {dtype}, expected bfloat16 or float16"
    if shape[-1] > MAX_WIDTH:
        return f"got {shape[-1]} channels a head with those of the bias, expected {MAX_WIDTH}"
    if jax.default_backend() == "gpu":
        found = float(getattr(jax.local_devices()[0], "compute_capability", 0))
        if found < MIN_CAPABILITY:
            return f"got a GPU of compute capability {found}, expected {MIN_CAPABILITY} or more"
    x = jax.ShapeDtypeStruct(shape, dtype)
    try:  # JAX asks cuDNN's version and knows what each supports.
        jax.eval_shape(
            jax.grad(lambda *x: by_cudnn(*x).astype(jnp.float32).sum(), (0, 1, 2)), x, x, x
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)
    return ""


@functools.cache
def say_once(text: str) -> None:
    console.info(text)
