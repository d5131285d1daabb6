"""U-SAM as a Flax module: `make_model(config.model)` and the prompts that it takes."""

from usam_jax.models.sam.prompt_encoder import Prompts
from usam_jax.models.usam import Features, USam, init_variables, make_model, variable_shapes

__all__ = ["Features", "Prompts", "USam", "init_variables", "make_model", "variable_shapes"]
