"""Torch checkpoints, read without torch and without executing code in them."""

from usam_jax.io.torch_checkpoint import load

__all__ = ["load"]
