"""Times of a new process up to its first training step, for `model.warm`.

Prints them as JSON.
"""

import json
import sys
import time

import jax

from benchmarks.accelerator.context import STEPS_PER_EPOCH
from benchmarks.accelerator.model import make_config
from benchmarks.accelerator.prepare import prepare_jax
from benchmarks.training import make_batch
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh, shard_batch


def main(dtype: str, batch: str, start: float) -> None:
    """`start` is when the process was started, in seconds since the epoch."""
    prepare_jax()
    times = {"imports": time.time() - start}
    config, mesh = make_config(dtype, batch), make_mesh(1)
    training = loop.make_training(config, STEPS_PER_EPOCH, mesh)
    begun = time.time()
    given, state = shard_batch(make_batch(config), mesh), training.start_fn()
    jax.block_until_ready(state)
    made = time.time()
    lowered = training.train_step.lower(state, given)  # type: ignore[attr-defined]
    traced = time.time()
    compiled = lowered.compile()
    ready = time.time()
    jax.block_until_ready(compiled(state, given)[1])
    times |= {"state": made - begun, "tracing": traced - made, "compiling": ready - traced}
    print(json.dumps({**times, "first": time.time() - start}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
