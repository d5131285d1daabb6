"""One of several processes that train some steps together and print the losses as JSON.

python tests/run_process.py COORDINATOR NUM_PROCESSES PROCESS_ID PACKED_DIR NUM_STEPS
"""

import json
import os
import sys

from conftest import phantom_config

if __name__ == "__main__":
    os.environ["JAX_NUM_CPU_DEVICES"] = "4"
    import jax
    import numpy as np

    from usam_jax.data import loader
    from usam_jax.data.packed import prepare
    from usam_jax.training import loop
    from usam_jax.utils import runtime
    from usam_jax.utils.mesh import make_mesh, shard_batch

    coordinator, num_processes, process, packed_dir, num_steps = sys.argv[1:]
    runtime.initialize_distributed(coordinator, int(num_processes), int(process))
    config = phantom_config(**{"data.packed_dir": packed_dir})
    packed = prepare.prepare(config.data)
    mesh = make_mesh()
    iterator, steps = loader.train_batches(
        packed, np.arange(24), config, 0, jax.process_index(), jax.process_count()
    )
    training = loop.make_training(config, steps, mesh)
    state, losses = training.start_fn(), []
    for _ in range(int(num_steps)):
        state, values = training.train_step(state, shard_batch(next(iterator), mesh))
        losses.append([float(values[f"train/{name}"]) for name in ("loss", "ce", "dice")])
    print(json.dumps({"devices": mesh.size, "losses": losses}))
