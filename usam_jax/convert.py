"""Conversion of published weights to this package's variables."""

from usam_jax.weights.load import from_published, from_sam, from_usam

__all__ = ["from_published", "from_sam", "from_usam"]
