"""The training loss."""

from usam_jax.training.losses import segmentation_loss

__all__ = ["segmentation_loss"]
