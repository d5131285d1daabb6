"""Matrix multiplication of channels."""

from jaxtyping import Array, Float


def matmul(x: Float[Array, "*n d"], kernel: Float[Array, "d e"]) -> Float[Array, "*n e"]:
    """`x @ kernel`."""
    return x @ kernel
