"""Activations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`max(x, 0)`."""
    return jax.nn.relu(x)


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`x * Phi(x)` with the exact normal distribution, computed in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)
