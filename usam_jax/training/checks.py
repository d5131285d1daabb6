"""Checks of everything that training depends on, before any computation."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data import checks as data_checks
from usam_jax.data.prompts import make_add_prompts
from usam_jax.models.common import registry
from usam_jax.training import compiler_options, losses, optimizer
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import check_batch_size

AT_LEAST_ONE = ("num_epochs", "grad_accum_steps", "log_every_steps", "checkpoint_every_steps")


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UsageError if a field has an unsupported value or does not fit the machine.

    Covers the sections `model`, `data`, `prompts`, `optimizer` and `train` of the config.
    """

    def expect(ok: bool, field: str, expected: str) -> None:
        if not ok:
            section, name = field.split(".")
            raise UsageError(f"config.{field}: got {config[section][name]!r}, expected {expected}")

    models.make_model(config.model)
    data_checks.check(config.data)
    num_classes = len(config.data.classes)
    expect(
        config.model.num_classes == num_classes,
        "model.num_classes",
        f"{num_classes}, the number of config.data.classes (background included)",
    )
    spec, name = models.get(config.model.name), registry.short_name(config.model.name)
    make_add_prompts(config)
    expect(
        spec.promptable or config.prompts.kind == "none",
        "prompts.kind",
        f"none: the network {name} takes no prompts",
    )
    expect(
        config.prompts.kind != "interactive" or config.model.get("interactive", False),
        "prompts.kind",
        f"another kind, or config.model.interactive=True (of usam and sam_s) for {name}",
    )
    optimizer.check(config.optimizer, spec)
    losses.make_loss(config.train)
    compiler_options.parse(config.train.compiler_options)
    check_batch_size(config.train.batch_size, mesh, "config.train.batch_size")
    for field in AT_LEAST_ONE:
        expect(config.train[field] >= 1, f"train.{field}", "1 or more")
    share = mesh.size * config.train.grad_accum_steps
    expect(
        config.train.batch_size % share == 0,
        "train.batch_size",
        f"a multiple of {share} (number of devices times train.grad_accum_steps)",
    )
    expect(config.train.statistics in ("batch", "device"), "train.statistics", "batch or device")
    expect(0 <= config.train.ema_decay < 1, "train.ema_decay", "a number from 0 to below 1")
