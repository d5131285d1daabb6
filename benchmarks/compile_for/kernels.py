"""The kernels of a program that XLA compiled for a GPU, from its text.

A kernel is an instruction of the entry computation or of a branch or loop that it calls. Bytes
are those of operands and results, so what stays in the cache counts as read. FLOP are counted for
matrix products, convolutions and attention alone.
"""

import collections
import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from benchmarks.accelerator.profile_table import part_of
from benchmarks.compile_for.target import Gpu
from benchmarks.hlo import ArrayType, parse_arrays

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
CALLED = re.compile(
    r"branch_computations=\{([^}]*)\}"
    r"|(?:true_computation|false_computation|body|to_apply)=(%?[\w.\-]+)"
)
CONTAINERS = ("conditional", "while", "call")
NO_KERNEL = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("all-reduce-done", "all-gather-done", "async-done", "copy-done", "partition-id"),
)
TARGET = re.compile(r'custom_call_target="([^"]*)"')
PLACE = re.compile(r'op_name="([^"]*)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
WINDOW = re.compile(r"window=\{size=([\dx]+)")
WORKSPACE = re.compile(r"\b[su]8\[(\d+)\]")
CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\["(\d+)"')
HOST = re.compile(r"callback|infeed|outfeed|SendToHost|RecvFromHost", re.IGNORECASE)


class Kernel(NamedTuple):
    """What one kernel does: its opcode or library call, arrays, work and place in the model.

    `window` is the longest side of a convolution's window, 0 if it has none.
    """

    call: str
    operands: tuple[ArrayType, ...]
    result: tuple[ArrayType, ...]
    bytes: int
    flop: int
    window: int
    place: str

    @property
    def is_matmul(self) -> bool:
        return "matmul" in self.call or "gemm" in self.call

    @property
    def is_convolution(self) -> bool:
        return "conv" in self.call and self.call != "convert"

    @property
    def multiplies(self) -> bool:
        return self.is_matmul or self.is_convolution or "fmha" in self.call

    def seconds(self, gpu: Gpu) -> float:
        """Predicted time: that of memory or of arithmetic, whichever is longer, and a gap."""
        rate = gpu.conv_rate if self.is_convolution else gpu.matmul_rate
        if self.multiplies and self.operands and self.operands[0].dtype == "f32":
            rate /= 2
        return max(self.bytes / gpu.memory_rate, self.flop / rate) + gpu.gap_s


class Instruction(NamedTuple):
    """An instruction of the entry computation, and the kernels that it runs.

    `operands` are the names of instructions.
    """

    name: str
    opcode: str
    operands: tuple[str, ...]
    kernels: tuple[Kernel, ...]


class Total(NamedTuple):
    """Sums over kernels."""

    seconds: float
    bytes: int
    flop: int
    kernels: int


def flop(call: str, result: ArrayType, operands: tuple[ArrayType, ...], line: str) -> int:
    """Floating-point operations of a library call, where a multiply-add counts as two."""
    out = math.prod(result.shape)
    if "matmul" in call or "gemm" in call:
        axis = CONTRACTED.search(line)
        return 2 * out * operands[0].shape[int(axis[1])] if axis else 0
    if "BackwardFilter" in call:  # the gradient of each pixel and channel, by the kernel's size
        return 2 * math.prod(operands[1].shape) * math.prod(result.shape[1:])
    if "BackwardInput" in call:
        return 2 * math.prod(operands[0].shape) * math.prod(operands[1].shape[1:])
    if "conv" in call:
        return 2 * out * math.prod(operands[1].shape[1:])
    if "fmha" in call:  # two products forward, five backward
        b, n, t, c = operands[0].shape
        return (10 if "Backward" in call else 4) * b * n * t * t * c
    return 0


def read(text: str) -> list[Kernel]:
    """The kernels of an optimised HLO program for a GPU, with those of branches and loops."""
    return [kernel for instruction in instructions(text) for kernel in instruction.kernels]


def instructions(text: str) -> list[Instruction]:
    """The instructions of an optimised HLO program for a GPU, in the order of their start.

    Of several branches the one that moves the most counts. A loop's kernels count once for each
    trip if XLA knows their number, else once.
    """
    lines: dict[str, list[tuple[str, ...]]] = collections.defaultdict(list)
    results: dict[str, str] = {}
    inside: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    computation = entry = ""
    for line in text.splitlines():
        if start := COMPUTATION.match(line):
            computation = start[2]
            entry = computation if start[1] else entry
        if found := INSTRUCTION.match(line):
            name, result, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            lines[computation].append((name, opcode, *operands, line))
            results[name] = result
            if place := PLACE.search(line):
                inside[computation][place[1]] += 1

    def place_of(line: str) -> str:
        """The place of an instruction, or the most common one of what it fuses."""
        called = re.search(r"calls=%?([\w.\-]+)", line)
        own = PLACE.search(line)
        if own or not called or not inside[called[1]]:
            return own[1] if own else ""
        return inside[called[1]].most_common(1)[0][0]

    def kernels_of(name: str, opcode: str, *rest: str) -> list[Kernel]:
        *operands, line = rest
        if opcode in CONTAINERS:
            called = [x for y in CALLED.findall(line) for x in re.split(r"[, ]+", y[0] or y[1])]
            inner = [list(walk(x.lstrip("%"))) for x in called]
            trips = TRIPS.search(line)
            if opcode == "conditional":  # one branch runs: that which moves the most
                inner = [max(inner, key=lambda x: sum(y.bytes for y in x))]
            return list(chain.from_iterable(inner)) * (int(trips[1]) if trips else 1)
        if opcode in NO_KERNEL:
            return []
        return [make_kernel(results[name], opcode, [results.get(x, "") for x in operands], line)]

    def walk(computation: str) -> Iterator[Kernel]:
        return chain.from_iterable(kernels_of(*x) for x in lines[computation])

    def make_kernel(result: str, opcode: str, given: list[str], line: str) -> Kernel:
        target = TARGET.search(line)
        call = target[1] if target else opcode
        operands = tuple(x for y in given for x in parse_arrays(y))
        out = parse_arrays(result)
        workspace = sum(int(x) for x in WORKSPACE.findall(result)) if target else 0
        moved = sum(x.bytes for x in (*operands, *out)) - workspace
        window = WINDOW.search(line)
        return Kernel(
            call=call,
            operands=operands,
            result=tuple(out),
            bytes=moved,
            flop=flop(call, out[0], operands, line) if target and out else 0,
            window=max(map(int, window[1].split("x"))) if window else 0,
            place=place_of(line),
        )

    return [
        Instruction(name, opcode, tuple(rest[:-1]), tuple(kernels_of(name, opcode, *rest)))
        for name, opcode, *rest in lines[entry]
    ]


def add(a: Total, b: Total) -> Total:
    """Return the sum of two rows."""
    return Total(a.seconds + b.seconds, a.bytes + b.bytes, a.flop + b.flop, a.kernels + b.kernels)


def by_part(kernels: Iterable[Kernel], gpu: Gpu) -> dict[str, Total]:
    """Sums by part of the model, the slowest first, then "the whole"."""
    rows: dict[str, Total] = {}
    for kernel in kernels:
        one = Total(kernel.seconds(gpu), kernel.bytes, kernel.flop, 1)
        for part in (part_of(kernel.place), "the whole"):
            rows[part] = add(rows.get(part, Total(0.0, 0, 0, 0)), one)
    whole = rows.pop("the whole", Total(0.0, 0, 0, 0))
    return {**dict(sorted(rows.items(), key=lambda x: -x[1].seconds)), "the whole": whole}


def wide_windows(kernels: Iterable[Kernel], largest: int) -> list[Kernel]:
    """Convolutions whose window is larger than every kernel of the network.

    Such a window grows with the image: XLA has exchanged the operands of a kernel's gradient.
    """
    return [x for x in kernels if x.is_convolution and x.window > largest]


def host_calls(text: str) -> list[str]:
    """Lines of a program that wait for the host."""
    calls = ("custom-call", "infeed", "outfeed", "send(", "recv(")
    return [x.strip() for x in text.splitlines() if any(y in x for y in calls) and HOST.search(x)]


def wide_products(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Library calls that multiply float32 numbers."""
    return [x for x in kernels if x.multiplies and any(y.dtype == "f32" for y in x.operands)]
