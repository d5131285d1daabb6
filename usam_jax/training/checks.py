"""What can be wrong with a config, found before any time is spent."""

import math
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data.prompt_modes import noisy_modes, other_modes
from usam_jax.data.prompts import make_add_prompts
from usam_jax.data.splits import check_splitting
from usam_jax.evaluation.case_metrics import POLICIES
from usam_jax.models import make_model
from usam_jax.models.common import registry
from usam_jax.training import optimizer
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import check_batch_size

PARTS = ("train", "val", "test")


def is_positive(x: Any) -> bool:
    return isinstance(x, int | float) and 0 < x < math.inf


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UsageError for settings that do not exist or contradict each other or the machine."""

    def expect(ok: bool, field: str, expected: str) -> None:
        if not ok:
            section, name = field.split(".")
            found = config[section][name]
            raise UsageError(f"config.{field}: got {found!r}, expected {expected}")

    make_model(config.model)
    spec = models.get(config.model.name)
    optimizer.check(config.optimizer, spec)
    if not spec.promptable:
        name = registry.short_name(config.model.name)
        expect(config.prompts.kind == "none", "prompts.kind", f"none: {name} takes no prompts")
        others = set(config.eval.prompts) - {"none"}
        expect(not others, "eval.prompts", f"none or (): {name} takes no prompts")
    make_add_prompts(config)
    other_modes(config)
    noisy_modes(config)
    check_batch_size(config.train.batch_size, mesh, "config.train.batch_size")
    check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")
    num_classes = len(config.data.classes)
    expect(
        config.model.num_classes == num_classes,
        "model.num_classes",
        f"the number of config.data.classes, {num_classes} (background counts)",
    )
    for field in (
        "train.num_epochs",
        "train.grad_accum_steps",
        "train.log_every_steps",
        "train.checkpoint_every_steps",
        "eval.every_epochs",
    ):
        section, name = field.split(".")
        expect(config[section][name] >= 1, field, "1 or more")
    share = mesh.size * config.train.grad_accum_steps
    expect(
        config.train.batch_size % share == 0,
        "train.batch_size",
        f"a multiple of {share}, the devices times train.grad_accum_steps",
    )
    expect(config.train.statistics in ("batch", "device"), "train.statistics", "batch or device")
    expect(0 <= config.train.ema_decay < 1, "train.ema_decay", "a number from 0 to below 1")
    expect(config.eval.select_on in PARTS[1:], "eval.select_on", "val or test")
    expect(config.eval.split in PARTS, "eval.split", "train, val or test")
    expect("mean" not in config.data.classes, "data.classes", "no class named mean")
    expect(
        len(config.eval.nsd_tolerance_mm) in (1, num_classes - 1)
        and all(is_positive(x) for x in config.eval.nsd_tolerance_mm),
        "eval.nsd_tolerance_mm",
        f"one number above 0, or {num_classes - 1}, one for each foreground class",
    )
    expect(
        config.eval.empty_policy in POLICIES, "eval.empty_policy", f"one of {', '.join(POLICIES)}"
    )
    check_splitting(config.data)
    expect(config.data.num_workers >= 0, "data.num_workers", "0 or more")
