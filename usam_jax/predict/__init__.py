"""Prediction: `Predictor` for clicks, `python -m usam_jax.predict` for volumes."""

from usam_jax.predict.predictor import EncodedSlice, Predictor

__all__ = ["EncodedSlice", "Predictor"]
