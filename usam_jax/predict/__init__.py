"""A trained model on new images: `Predictor` for clicks, `python -m usam_jax.predict` for volumes."""

from usam_jax.predict.predictor import Predictor

__all__ = ["Predictor"]
