"""Speed of training fed by the real data pipeline, and the time of 100 epochs."""

import pathlib
import tempfile
from collections.abc import Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import data, limits
from benchmarks.limits import STEP_FLOP, product_limit
from benchmarks.results import Row
from benchmarks.training import setups
from usam_jax.data import loader
from usam_jax.data.packed.prepare import prepare
from usam_jax.training import loop
from usam_jax.training.throughput import Meter
from usam_jax.utils import console
from usam_jax.utils.mesh import make_mesh, shard_batch

TRAINING_SLICES, EPOCHS = 26_656, 100  # of CARE's training set; as published
NUM_STEPS = {"cpu": 12, "gpu": 200}
WARM_UP = 3  # steps: the first compiles, and the pipeline gets ahead


def measure_epochs(configs: Iterable[tuple[ConfigDict, str]] | None = None) -> list[Row]:
    """Steps of ViT-B from packed slices, with the published augmentation and points.

    `configs` are configs with their names; by default those of `training.setups`.
    """
    results, num_steps = [], NUM_STEPS[jax.default_backend()]
    with tempfile.TemporaryDirectory() as folder:
        packed = prepare(data.write_slices(pathlib.Path(folder)).data)
        rows = np.resize(np.arange(len(packed.slices("train"))), TRAINING_SLICES)
        for config, name in configs or setups():
            mesh, batch_size = make_mesh(1), config.train.batch_size
            training = loop.make_training(config, TRAINING_SLICES // batch_size, mesh)
            state, speed = training.start_fn(), Meter(batch_size)
            batches, _ = loader.train_batches(packed, rows, config)
            with console.Progress(name, WARM_UP + num_steps, "steps") as bar:
                for step in range(WARM_UP + num_steps):
                    if step == WARM_UP:
                        speed.restart()
                    with speed.waiting():
                        batch = next(batches)
                    state, values = training.train_step(state, shard_batch(batch, mesh))
                    speed.count()
                    if step < WARM_UP or step == WARM_UP + num_steps - 1:
                        jax.block_until_ready(values)
                    bar.advance(per_step=batch_size)
            found = speed.read()
            batches.close()
            rate = found["speed/slices_per_second"]
            share = rate * STEP_FLOP / product_limit(config.model.dtype)(limits.LIMIT_S)
            hours = EPOCHS * TRAINING_SLICES / rate / 3600
            results += [
                (f"{num_steps} steps with the pipeline, {name}", rate, "slices/s"),
                (f"the same, of a matrix product, {name}", share, ""),
                (f"the same, waiting for data, {name}", 100 * found["speed/data_wait"], "%"),
                (f"{EPOCHS} epochs of {TRAINING_SLICES} slices at that rate, {name}", hours, "h"),
            ]
    return results
