"""The forms of `ops` that XLA:CPU compiles to faster code.

Each form states what XLA does to the reference, then the gain that was measured: ViT-B in float32
at 224x224 with 4 slices on two cores unless stated otherwise. Custom gradients are for reverse
differentiation only. Those of convolutions and attention are in `cpu_conv` and `cpu_attention`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
