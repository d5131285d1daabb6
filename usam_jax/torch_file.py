"""Torch checkpoints, read without torch and without running anything in them."""

from usam_jax.io.torch_checkpoint import load

__all__ = ["load"]
