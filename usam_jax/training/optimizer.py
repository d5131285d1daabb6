"""AdamW with a learning rate for each part of the model; the prompt encoder is frozen."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from usam_jax.utils.errors import UsageError

FROZEN = "prompt_encoder"

Factor = Callable[[Any], Any]


def polynomial_decay(num_steps: int, warmup_steps: int = 0) -> Factor:
    """Factor of the learning rates at a step: `(1 - step / num_steps)**0.9`, as published.

    With warm-up, the decay starts after `warmup_steps` of a linear rise from 0.
    """

    def factor_fn(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        # Beyond the last step the base would be negative and its power NaN.
        decay = jnp.maximum(1 - (step - warmup_steps) / num_steps, 0.0) ** 0.9
        return jnp.minimum(decay, step / warmup_steps) if warmup_steps else decay

    return factor_fn


def label_parts(params: Any, parts: set[str]) -> dict[str, str]:
    """The optimiser's group of each part, which is a top-level name of `params`.

    Raises UsageError for a part without a learning rate, or a rate without a part.
    """
    found = set(params) - {FROZEN}
    if found != parts:
        raise UsageError(
            f"config.optimizer.learning_rates: found {sorted(parts)}, expected one for each part "
            f"of the model: {sorted(found)}"
        )
    return {part: part for part in params}


def learning_rates(config: ConfigDict, params: Any) -> dict[str, float]:
    """The learning rates of the parts that the model has (S has no `backbone`)."""
    return {k: v for k, v in config.learning_rates.items() if k != "backbone" or k in params}


def make_optimizer(
    config: ConfigDict, factor_fn: Factor, params: Any
) -> optax.GradientTransformation:
    """AdamW for `config.optimizer`, one group a part, scaled by `factor_fn` of the step."""
    rates = learning_rates(config, params)

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(lambda step: rate * factor_fn(step), weight_decay=config.weight_decay)

    groups = {part: adamw(rate) for part, rate in rates.items()}
    groups[FROZEN] = optax.set_to_zero()
    return optax.partition(groups, label_parts(params, set(rates)))
