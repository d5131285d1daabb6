"""Options of XLA for the training step, such as those that overlap communication."""

import json
from collections.abc import Iterable
from typing import Any

from usam_jax.utils.errors import UsageError


def parse(options: Iterable[str]) -> dict[str, Any] | None:
    """Return `config.train.compiler_options` as `jax.jit` takes them, or None if there are none.

    Raises UsageError if one is not XLA_NAME=VALUE. XLA itself knows the names and refuses others
    when it compiles.
    """
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not (equals and value and name.startswith("xla_")):
            raise UsageError(
                f"config.train.compiler_options: got {option!r}, expected an option of XLA and its "
                "value, such as xla_gpu_enable_latency_hiding_scheduler=true"
            )
        try:
            found[name] = json.loads(value)  # a truth value or a number
        except json.JSONDecodeError:
            found[name] = value
    return found or None
