"""Networks as Flax modules: `make_model(config.model)`, and the prompts of promptable ones."""

from usam_jax.models.common.prompts import Prompts
from usam_jax.models.common.registry import (
    get,
    init_variables,
    make_config,
    make_model,
    predicted_slices,
    variable_shapes,
)

__all__ = [
    "Prompts",
    "get",
    "init_variables",
    "make_config",
    "make_model",
    "predicted_slices",
    "variable_shapes",
]
