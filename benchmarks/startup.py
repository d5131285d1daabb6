"""Time to the first training step, with and without a compilation cache."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.results import ROOT, Row

START = """
import json, resource, sys, time
start = time.time()
from usam_jax.utils import xla_flags
xla_flags.use_fast_convolutions()
import jax
from usam_jax.utils import runtime
runtime.keep_memory()
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from configs import care
from benchmarks.training import make_batch
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh, shard_batch
config = care.get_config()
config.init_from, config.train.batch_size = "", 2
mesh = make_mesh(1)
training = loop.make_training(config, 100, mesh)
state = training.start_fn()
batch = shard_batch(make_batch(config), mesh)
begun = time.time()
lowered = training.train_step.lower(state, batch)
traced = time.time()
compiled = lowered.compile()
made = time.time()
for end in range(2):
    before = time.time()
    state, values = compiled(state, batch)
    loss = float(values["train/loss"])
    if not end:
        first = time.time() - start
print(json.dumps({
    "tracing": traced - begun,
    "compiling": made - traced,
    "first": first,
    "step": time.time() - before,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def start(cache: str) -> dict[str, Any]:
    """Measurements of one process that starts, takes two steps and ends."""
    command = [sys.executable, "-c", START, cache]
    found: dict[str, Any] = json.loads(
        subprocess.check_output(command, text=True, cwd=ROOT).splitlines()[-1]
    )
    return found


def measure_startup() -> list[Row]:
    """Time to the end of the first training step of ViT-B, and memory of the process."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = start(cache), start(cache)
    name = "ViT-B, batch 2"
    return [
        (f"tracing the training step of {name}", warm["tracing"], "s"),
        (f"compiling the training step of {name}", cold["compiling"], "s"),
        (f"the same from the cache, {name}", warm["compiling"], "s"),
        (f"first training step of {name}, nothing compiled", cold["first"], "s"),
        (f"first training step of {name}, from the cache", warm["first"], "s"),
        (f"training step of {name}", warm["step"], "s"),
        (f"peak memory of the process, {name}", warm["peak"] / 1e9, "GB"),
    ]
