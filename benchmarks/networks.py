"""Speed and memory of each network in evaluation and training, and the share of the limit."""

import subprocess
import sys
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from benchmarks.results import ROOT, Row
from benchmarks.training import make_batch, measure_forward, measure_step
from configs import care
from usam_jax import models
from usam_jax.models.common import registry
from usam_jax.models.common.flop import count_flop, forward_flop
from usam_jax.training import loop
from usam_jax.utils import console
from usam_jax.utils.errors import SomeFailed
from usam_jax.utils.mesh import make_mesh

BATCH = 4
ROUNDS = 5
SMALL_SIZE = 32  # pixels per side in a dry run, of networks that take them


def choose_networks(names: Sequence[str]) -> list[str]:
    """Return the given networks, of files with absolute paths, or all of them.

    Raises UsageError for a network that does not exist.
    """
    for name in names:
        registry.get(name)
    return [registry.full_name(x) for x in names] or registry.names()


def measure_each(names: Sequence[str], dry: bool) -> None:
    """Measure each network in a process of its own, which records its rows when it ends.

    Raises SomeFailed, which names them, if networks failed.
    """
    failed = []
    for number, name in enumerate(names, 1):
        console.info(f"network {number} of {len(names)}: {registry.short_name(name)}")
        command = [sys.executable, "-m", "benchmarks", "networks", name, *["--dry"] * dry]
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(f"{registry.short_name(name)} (exit code {code})")
    if failed:
        raise SomeFailed(
            f"{len(failed)} of {len(names)} networks failed: {', '.join(failed)}. "
            "The rows of the others are recorded."
        )


def measure_network(name: str, dry: bool = False) -> list[Row]:
    """The forward pass and the training step of a network, in float32."""
    config = make_config(name, dry)
    size, batch = config.model.image_size, config.train.batch_size
    about = f"{registry.short_name(name)}, {size}x{size}, batch {batch}"
    if models.get(name).dims == 3:
        about += f" of {config.model.slices} slices"
    work, rounds = forward_flop(config.model), 1 if dry else ROUNDS
    rows = measure_forward(config, f"evaluating {about}", work, rounds)
    rows += measure_step(config, f"training {about}", count_step(config), rounds)
    return [row for row in rows if not row[0].startswith(("peak", "tracing"))]


def make_config(name: str, dry: bool) -> ConfigDict:
    """Return the config of a measurement: BATCH slices, or one window of slices.

    In a dry run the network is that of configs/phantom.py, and images are small if it takes such.
    """
    config, spec = care.get_config(name), models.get(name)
    config.init_from, config.train.batch_size = "", BATCH if spec.dims == 2 else 1
    if dry:
        config.model.update(spec.small)
        if spec.at(config.model).image_size.accepts(SMALL_SIZE):
            config.model.image_size = SMALL_SIZE
    return config


def count_step(config: ConfigDict) -> float:
    """Return the operations per slice of a training step, in FLOP.

    Parameters that are frozen take none of their own.
    """
    training = loop.make_training(config, 100, make_mesh(1))
    batch = jax.eval_shape(lambda: make_batch(config))
    flop = count_flop(training.train_step, training.target, batch)
    return flop / (config.train.batch_size * models.predicted_slices(config.model))
