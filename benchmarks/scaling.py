"""Predict what a training step loses to communication on several GPUs.

Counts the bytes that the step of ViT-B sums over its devices, in the program that XLA compiles for
eight of them, and predicts the efficiency from published rates. Efficiency is the share of the
step's time spent computing. The prediction leaves out that GPUs wait for each other and for data.
"""

import json
import os
import subprocess
import sys
from typing import NamedTuple

from benchmarks.limits import STEP_FLOP
from benchmarks.results import ROOT, Row

BACKWARD_SHARE = 2 / 3  # of the step; it can hide communication
PEAK = 989e12  # FLOP/s, dense bfloat16 of an H100 SXM; NVIDIA's data sheet
PEAK_SHARE = 0.45  # assumed: what well-tuned transformers reach. A lower share hides more
BATCHES = (4, 8, 32)  # slices per GPU
SMALL = (
    2**16
)  # bytes; smaller sums are those of BatchNorm and the loss, which wait for the slowest link

NUM_LOCAL = 8  # GPUs of a host
NVLINK = 450e9  # bytes/s each way, fourth generation, nominal; NVIDIA's data sheet
PCIE = 50e9  # bytes/s each way, commonly achieved of the 64e9 of PCIe 5 x16
FAST_NIC = 400e9 / 8  # bytes/s, 400 Gbit/s for each GPU
SLOW_NIC = 100e9 / 8  # bytes/s, 100 Gbit/s for each host
NEAR_S, FAR_S = 20e-6, 50e-6  # assumed; a small NCCL sum within a host, and over PCIe or hosts


class Setup(NamedTuple):
    """GPUs joined in a ring.

    `rate` is that of its slowest link, in bytes/s each way.
    """

    name: str
    num_gpus: int
    rate: float
    latency_s: float


# A ring over several hosts enters and leaves each host once, so a host's NICs share its traffic.
SETUPS = (
    Setup("8 GPUs, NVLink", NUM_LOCAL, NVLINK, NEAR_S),
    Setup("8 GPUs, PCIe 5", NUM_LOCAL, PCIE, FAR_S),
    Setup("4 x 8, 400 Gbit/s a GPU", 4 * NUM_LOCAL, min(NVLINK, NUM_LOCAL * FAST_NIC), FAR_S),
    Setup("4 x 8, 100 Gbit/s a host", 4 * NUM_LOCAL, SLOW_NIC, FAR_S),
)

COMPILE = """
import json
import jax
from configs import care
from benchmarks.training import make_batch
from benchmarks.hlo import QUICK, collectives
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh, batch_sharding
config, mesh = care.get_config(), make_mesh(8)
config.init_from, config.train.batch_size = "", 8
training = loop.make_training(config, 100, mesh)
placed = batch_sharding(mesh)
batch = {
    x: jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=placed)
    for x, y in make_batch(config).items()
}
compiled = training.train_step.lower(training.target, batch).compile(compiler_options=QUICK)
print(json.dumps([(x.kind, x.bytes) for x in collectives(compiled.as_text())]))
"""


def count_collectives() -> list[tuple[str, int]]:
    """Kind and bytes of each collective of the data-parallel float32 step of configs/care.py."""
    environment = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    printed = subprocess.check_output(
        [sys.executable, "-c", COMPILE], text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    return [(kind, size) for kind, size in json.loads(printed.splitlines()[-1])]


def predict(setup: Setup, num_bytes: int, num_small: int, batch: int) -> tuple[float, float]:
    """Efficiency without overlap of sums and computation, and with full overlap."""
    compute = STEP_FLOP * batch / (PEAK * PEAK_SHARE)
    send = 2 * (setup.num_gpus - 1) / setup.num_gpus * num_bytes / setup.rate
    waits = num_small * setup.latency_s  # the next layer needs them, so nothing hides them
    rest = max(0.0, send - BACKWARD_SHARE * compute)
    return compute / (compute + send + waits), compute / (compute + rest + waits)


def measure_scaling() -> list[Row]:
    """Counted bytes and sums of a step, and predicted efficiencies.

    Raises ValueError if the step has collectives other than all-reduce.
    """
    found = count_collectives()
    if other := {kind for kind, _ in found} - {"all-reduce"}:
        raise ValueError(
            f"collectives of a data-parallel step: got {', '.join(other)}, expected all-reduce"
        )
    num_bytes = sum(size for _, size in found)
    num_small = sum(size < SMALL for _, size in found)
    rows = [
        ("summed over devices in a training step, ViT-B, float32", num_bytes / 1e6, "MB"),
        (f"sums of less than {SMALL // 1024} KiB in it", float(num_small), ""),
    ]
    for setup in SETUPS:
        for batch in BATCHES:
            cases = zip(("no", "full"), predict(setup, num_bytes, num_small, batch), strict=True)
            for overlap, share in cases:
                what = (
                    f"predicted efficiency, {setup.name}, {batch} slices a GPU, {overlap} overlap"
                )
                rows.append((what, 100 * share, "%"))
    return rows
