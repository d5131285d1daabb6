"""Prediction: `Predictor` for clicks, `python -m usam_jax.predict` for volumes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usam_jax.predict.predictor import EncodedSlice, Predictor

__all__ = ["EncodedSlice", "Predictor"]


def __getattr__(name: str) -> Any:
    """Import the predictor, and JAX with it, when it is first used: the viewer can do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from usam_jax.predict import predictor

    return getattr(predictor, name)
