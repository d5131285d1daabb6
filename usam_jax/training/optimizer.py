"""AdamW or SGD with one learning rate per group of trainable parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec, group_of
from usam_jax.utils.errors import UsageError

NAMES = ("adamw", "sgd")

Factor = Callable[[Any], Any]


def polynomial_decay(num_steps: int, warmup_steps: int = 0, power: float = 0.9) -> Factor:
    """Return a function of the step: `(1 - step / num_steps)**power`, as in the published code.

    With warm-up, the factor rises linearly from 0 for `warmup_steps` and decays from there.
    """

    def factor_fn(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        # Clipped at 0: after the last step the base is negative and its power NaN.
        decay = jnp.maximum(1 - (step - warmup_steps) / num_steps, 0.0) ** power
        return jnp.minimum(decay, step / warmup_steps) if warmup_steps else decay

    return factor_fn


def check(config: ConfigDict, spec: ModelSpec) -> None:
    """Raise UsageError if a field of `config.optimizer` is invalid for the network."""
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
    for field in ("clip_norm", "decay_power"):
        if config[field] < 0:
            raise UsageError(f"config.optimizer.{field}: got {config[field]}, expected 0 or more")
    if not 0 <= config.momentum < 1:
        raise UsageError(f"config.optimizer.momentum: got {config.momentum}, expected 0 to below 1")


def label_params(params: Any, spec: ModelSpec, path: str = "") -> Any:
    """Return the learning-rate groups of trainable parameters as a prefix tree of `params`.

    A subtree with a single group is one label, so that the states of the other groups hold one
    empty entry for it. Raises UsageError if no rule of the network covers a parameter.
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
    """Return the optimizer of the trainable parameters, with rates times `factor_fn(step)`.

    AdamW decouples weight decay from the gradient. SGD adds it to the gradient, as torch does,
    after the norm of all gradients is cut to `clip_norm`, unless that is 0.
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
    tx = optax.partition(groups, lambda params: label_params(params, spec))
    return optax.chain(clip_by_norm(config.clip_norm), tx) if config.clip_norm else tx


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale all gradients by `max_norm / (norm + 1e-6)` if that is below 1, as torch does."""

    def update(grads: Any, state: Any, _params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda x: x * factor, grads), state

    return optax.GradientTransformation(lambda _params: optax.EmptyState(), update)
