"""Normalisation to mean 0 and variance 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def normalise(
    x: Float[Array, "*n d"],
    scale: Float[Array, "*c"],
    bias: Float[Array, "*c"],
    *,
    axes: tuple[int, ...],
    epsilon: float,
) -> tuple[Float[Array, "*n d"], Array, Array]:
    """Normalise `x`, then apply scale and bias, and return mean and variance too.

    `y = (x - mean) / sqrt(variance + epsilon) * scale + bias`, in the dtype of `x`. Scale and
    bias run along the last axes of `x`.

    Mean and variance are taken along `axes`, which stay as axes of size 1. They are float32 and
    have no gradient of their own. The variance is biased and takes two passes, as in torch.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.square(wide - mean).mean(axes, keepdims=True)
    y = (wide - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias
    return y.astype(x.dtype), jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)
