"""When the collectives of a compiled step run, and how long the GPUs wait for them.

XLA's schedule says which kernels run between a collective's start and the instruction that waits
for it. One collective is sent at a time, next to the kernels.
"""

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.compile_for.kernels import Instruction
from benchmarks.compile_for.target import HOST_DEVICES, Gpu
from benchmarks.hlo import KINDS

NVLINK = 450e9  # bytes/s each way, fourth generation; NVIDIA's data sheet
PCIE = 64e9  # bytes/s each way of PCIe 5 x16
FAST_NIC = 400e9 / 8  # bytes/s, 400 Gbit/s for each GPU
SLOW_NIC = 100e9 / 8  # bytes/s, 100 Gbit/s for each host
REACHED = 0.8  # assumed: share of a link's nominal rate that large sums reach
NEAR_S, FAR_S = 20e-6, 50e-6  # assumed: a small NCCL sum within a host, and over PCIe or hosts


class Link(NamedTuple):
    """GPUs joined in a ring whose slowest link sends `rate` bytes/s each way."""

    name: str
    num_gpus: int
    rate: float
    latency_s: float

    def seconds(self, num_bytes: int) -> float:
        """Time of a sum over all GPUs of so many bytes on each."""
        sent = 2 * (self.num_gpus - 1) / self.num_gpus * num_bytes
        return self.latency_s + sent / (REACHED * self.rate)


# A ring over several hosts enters and leaves each host once, so a host's NICs share its traffic.
LINKS = (
    Link("NVLink", HOST_DEVICES, NVLINK, NEAR_S),
    Link("PCIe 5", HOST_DEVICES, PCIE, FAR_S),
    Link("400 Gbit/s a GPU", 4 * HOST_DEVICES, min(NVLINK, HOST_DEVICES * FAST_NIC), FAR_S),
    Link("100 Gbit/s a host", 4 * HOST_DEVICES, SLOW_NIC, FAR_S),
)


class Step(NamedTuple):
    """Predicted seconds of a step: all kernels, all collectives, and both as scheduled."""

    kernels: float
    collectives: float
    scheduled: float


def predict(program: Iterable[Instruction], gpu: Gpu, link: Link) -> Step:
    """Run a program's instructions in their order, each collective when its link is free."""
    now = busy = computed = sent = 0.0
    ends: dict[str, float] = {}
    for x in program:
        if x.opcode.removesuffix("-start") in KINDS:
            length = link.seconds(sum(y.bytes for k in x.kernels for y in k.result))
            busy, sent = max(now, busy) + length, sent + length
            ends[x.name] = busy
            if not x.opcode.endswith("-start"):
                now = busy
        elif x.opcode.removesuffix("-done") in KINDS:
            now = max(now, *(ends[y] for y in x.operands))
        else:
            length = sum(k.seconds(gpu) for k in x.kernels)
            now, computed = now + length, computed + length
    return Step(computed, sent, max(now, busy))
