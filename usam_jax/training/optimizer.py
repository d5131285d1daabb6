"""AdamW or SGD with a learning rate for each group of parameters; frozen ones have no part in it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec, group_of
from usam_jax.utils.errors import UsageError

NAMES = ("adamw", "sgd")

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


def check(config: ConfigDict, spec: ModelSpec) -> None:
    """Raise UsageError for a field of `config.optimizer` that the network cannot be trained with."""
    rates = config.learning_rates
    if set(rates) != set(spec.groups):
        raise UsageError(
            f"config.optimizer.learning_rates: got {sorted(rates)}, expected one rate for each "
            f"group of the network: {sorted(spec.groups)}"
        )
    for group, rate in rates.items():
        if rate < 0:
            raise UsageError(f"config.optimizer.learning_rates.{group}: got {rate}, expected >= 0")
    if config.name not in NAMES:
        raise UsageError(
            f"config.optimizer.name: got {config.name!r}, expected one of {', '.join(NAMES)}"
        )
    if not 0 <= config.momentum < 1:
        raise UsageError(f"config.optimizer.momentum: got {config.momentum}, expected 0 to below 1")


def label_params(params: Any, spec: ModelSpec, path: str = "") -> Any:
    """The learning-rate group of the trainable parameters: a tree of which `params` is an extension.

    A subtree of one group is one label, so that other groups' states hold one empty entry for it.
    Raises UsageError for a parameter that no rule of the network covers.
    """
    if not isinstance(params, dict):
        return group_of(path, spec)
    labels = {
        name: label_params(subtree, spec, f"{path}/{name}" if path else name)
        for name, subtree in params.items()
    }
    groups = [x for x in labels.values() if isinstance(x, str)]
    return groups[0] if len(groups) == len(labels) and len(set(groups)) == 1 else labels


def make_optimizer(
    config: ConfigDict, factor_fn: Factor, spec: ModelSpec
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer` for trainable parameters, scaled by `factor_fn` of the step.

    AdamW decays weights apart from the gradient, as in its paper; SGD adds the decay to the
    gradient, as torch does.
    """

    def of_rate(rate: float) -> optax.GradientTransformation:
        def schedule(step: Any) -> Any:
            return rate * factor_fn(step)

        if config.name == "adamw":
            return optax.adamw(schedule, weight_decay=config.weight_decay)
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
        )

    groups = {group: of_rate(rate) for group, rate in config.learning_rates.items()}
    return optax.partition(groups, lambda params: label_params(params, spec))
