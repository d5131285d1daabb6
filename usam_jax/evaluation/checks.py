"""Checks of `config.eval`, made before any time is spent."""

import math
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data.prompt_modes import jittered_modes, other_modes
from usam_jax.evaluation.case_metrics import POLICIES
from usam_jax.models.common import registry
from usam_jax.training import checks as training_checks
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import check_batch_size

SELECTION_SPLITS = ("val", "test")
SPLITS = ("train", *SELECTION_SPLITS)


def is_positive(x: Any) -> bool:
    return isinstance(x, int | float) and 0 < x < math.inf


def check_all(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UsageError for a wrong field in any section, each checked by its owner."""
    training_checks.check(config, mesh)
    check(config, mesh)


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UsageError for a field of `config.eval` that has an unsupported value.

    Reads `config.model.name`, `config.data.classes` and `config.prompts` too; `mesh` limits the batch
    size.
    """

    def expect(ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.eval.{name}: got {config.eval[name]!r}, expected {expected}")

    check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")
    expect(config.eval.every_epochs >= 1, "every_epochs", "1 or more")
    expect(config.eval.select_on in SELECTION_SPLITS, "select_on", "val or test")
    expect(config.eval.split in SPLITS, "split", "train, val or test")
    other_modes(config)
    jittered_modes(config)
    expect(
        models.get(config.model.name).promptable or not set(config.eval.prompts) - {"none"},
        "prompts",
        f"none or (): the network {registry.short_name(config.model.name)} takes no prompts",
    )
    expect(0 <= config.eval.max_clicks <= 100, "max_clicks", "0 to 100")
    num_foreground = len(config.data.classes) - 1
    tolerances = config.eval.nsd_tolerance_mm
    expect(
        len(tolerances) in (1, num_foreground) and all(is_positive(x) for x in tolerances),
        "nsd_tolerance_mm",
        f"one number above 0, or {num_foreground}, one for each foreground class",
    )
    expect(config.eval.empty_policy in POLICIES, "empty_policy", f"one of {', '.join(POLICIES)}")
