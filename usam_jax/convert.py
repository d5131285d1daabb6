"""Weights of others to this package's variables."""

from usam_jax.weights.name_map import from_sam, from_usam

__all__ = ["from_sam", "from_usam"]
