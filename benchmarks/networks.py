"""Speed of each network in evaluation and training, compared with the machine's limit."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from benchmarks.results import Row
from benchmarks.training import make_batch, measure_forward, measure_step
from benchmarks.zoo import count_gflop
from configs import care
from usam_jax.models.common import registry
from usam_jax.models.common.flop import count_flop
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh

BATCH = 4
ROUNDS = 5


def measure_networks(names: Sequence[str] = ()) -> list[Row]:
    """The forward pass and the training step of some networks, or of all, in float32."""
    rows = []
    for name in names or registry.names():
        config = care.get_config(name)
        config.init_from, config.train.batch_size = "", BATCH
        size = config.model.image_size
        about = f"{name}, {size}x{size}, batch {BATCH}"
        work = 1e9 * count_gflop(name)
        rows += measure_forward(config, f"evaluating {about}", work, ROUNDS)
        rows += measure_step(config, f"training {about}", count_step(config), ROUNDS)
    return [row for row in rows if not row[0].startswith(("peak", "tracing"))]


def count_step(config: ConfigDict) -> float:
    """Return the operations per slice of a training step, in FLOP.

    Parameters that are frozen take none of their own.
    """
    training = loop.make_training(config, 100, make_mesh(1))
    batch = jax.eval_shape(lambda: make_batch(config))
    return count_flop(training.train_step, training.target, batch) / config.train.batch_size
