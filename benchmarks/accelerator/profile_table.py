"""From a profile and the compiled program's text: which operations and parts take how long."""

import collections
import csv
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure

from benchmarks.accelerator.context import add, settings

# Parts of the model by the place that an operation comes from; the first match counts.
PARTS = (
    ("update", r"/update/"),
    ("image encoder: attention's products", r"attn/(qkv|proj)/|attn.*dot_general"),
    ("image encoder: rest of attention", r"/attn"),
    ("image encoder: MLP", r"image_encoder/.*/mlp"),
    ("image encoder: norms, windows, neck", r"image_encoder"),
    ("convolutional encoder: full size", r"backbone/inc"),
    ("convolutional encoder: below", r"backbone"),
    (
        "mask decoder: transformer, tokens",
        r"mask_decoder/(transformer|output_hyper)|prompt_encoder",
    ),
    ("mask decoder: up1 and output, full size", r"mask_decoder/.*/(up1|final_output)"),
    ("mask decoder: up2", r"mask_decoder/.*/up2"),
    ("mask decoder: up3, up4, maps", r"mask_decoder"),
)
REST = "loss, norms of gradients, other"
BACKWARD = "transpose("  # in the place of an operation of the backward pass
CONTAINERS = ("conditional", "while", "call")  # the operations inside are counted themselves
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
MAX_TRACE_BYTES = 15e6
COLUMNS = (
    *("ms per step", "share", "calls per step", "part", "direction"),
    *("operation", "kernel", "what", "place"),
)


class Event(NamedTuple):
    """One run of an operation on the device.

    `start` and `length` in seconds.
    """

    kernel: str
    operation: str
    start: float
    length: float


def part_of(place: str) -> str:
    return next((part for part, pattern in PARTS if re.search(pattern, place)), REST)


def read_program(text: str) -> dict[str, tuple[str, str]]:
    """By instruction: opcode, custom call and result as one text, and the place it comes from.

    A fusion without a place of its own has the most common one of what it fuses.
    """
    found: dict[str, tuple[str, str]] = {}
    inside: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    calls, computation = {}, ""
    for line in text.splitlines():
        if start := COMPUTATION.match(line):
            computation = start[1]
        if match := INSTRUCTION.match(line):
            name, result, opcode = match.groups()
            place = re.search(r'op_name="([^"]*)"', line)
            target = re.search(r'custom_call_target="([^"]*)"', line)
            kind = re.search(r"kind=(\w+)", line)
            words = (opcode, kind and kind[1], target and target[1], result[:60])
            found[name] = " ".join(filter(None, words)), place[1] if place else ""
            if place:
                inside[computation][place[1]] += 1
            if called := re.search(r"calls=%?([\w.\-]+)", line):
                calls[name] = called[1]
    for name, called_name in calls.items():
        what, own = found[name]
        if not own and inside[called_name]:
            found[name] = what, inside[called_name].most_common(1)[0][0]
    return found


def read_events(folder: pathlib.Path) -> list[Event]:
    """What the device ran, from the profile in `folder`."""
    path = next(folder.rglob("*.xplane.pb"))
    return collect(jax.profiler.ProfileData.from_file(str(path)))


def collect(data: Any) -> list[Event]:
    """Events of GPU streams, or on a CPU those that name an HLO operation."""
    planes = list(data.planes)
    devices = [x for x in planes if x.name.startswith("/device:GPU")]
    events = []
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):  # other lines repeat the same
                continue
            for event in line.events:
                stats = {x: str(y) for x, y in event.stats if x == "hlo_op"}
                if devices or stats:
                    times = event.start_ns * 1e-9, event.duration_ns * 1e-9
                    events.append(Event(event.name, stats.get("hlo_op", ""), *times))
    return events


def busy_seconds(events: list[Event]) -> float:
    """Seconds in which at least one operation ran."""
    total, until = 0.0, 0.0
    for event in sorted(events, key=lambda x: x.start):
        end = event.start + event.length
        total += max(0.0, end - max(event.start, until))
        until = max(until, end)
    return total


def report(folder: pathlib.Path, text: str, steps: int, step_s: float, name: str) -> None:
    """Write profile.csv, by operation, and profile.png, by part, of a profile of several steps.

    `text` is the compiled program, `step_s` the seconds of one profiled step. Raises RuntimeError
    if the profile has no operations of the device.
    """
    out = settings().out
    for path in folder.rglob("*.trace.json.gz"):
        if path.stat().st_size < MAX_TRACE_BYTES:
            shutil.copy(path, out / "trace.json.gz")
    program, events = read_program(text), read_events(folder)
    if not events:
        raise RuntimeError("profile: got no operations of the device, expected some")
    operations: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    parts: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for event in events:
        kernel = event.kernel
        # The kernel of the fusion fusion.1 is called fusion_1.
        names = (event.operation, kernel, re.sub(r"_(\d+)$", r".\1", kernel))
        key = next((x for x in names if x in program), event.operation or kernel)
        what, place = program.get(key, ("", ""))
        if what.split(" ")[0] in CONTAINERS:
            continue
        if place:
            part = part_of(place)
        else:
            copied = "memcpy" in kernel.lower() or "copy" in kernel.lower()
            part = "copies" if copied else "unknown place"
        took = event.length / steps * 1e3
        operations[key, kernel][0] += took
        operations[key, kernel][1] += 1 / steps
        parts[part][BACKWARD in place] += took
    busy = busy_seconds(events) / steps
    ranked_parts = sorted(parts.items(), key=lambda x: -sum(x[1]))
    add(
        (f"profile: device busy, share of a step, {name}", busy / step_s, ""),
        (f"profile: operations of the device, {name}", len(events) / steps, "per step"),
        *((f"profile: {x}, {name}", sum(y), "ms per step") for x, y in ranked_parts),
    )
    write_operations(out / "profile.csv", operations, program)
    draw(out / "profile.png", dict(reversed(ranked_parts)), step_s, name)


def write_operations(
    path: pathlib.Path,
    operations: dict[tuple[str, str], list[float]],
    program: dict[str, tuple[str, str]],
) -> None:
    """Write the 400 operations that take longest, and print 25 of them."""
    total = sum(took for took, _ in operations.values())
    ranked = sorted(operations.items(), key=lambda x: -x[1][0])
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (key, kernel), (took, calls) in ranked[:400]:
            what, place = program.get(key, ("", ""))
            direction = "backward" if BACKWARD in place else "forward"
            row = (f"{took:.4f}", f"{took / total:.4f}", f"{calls:.1f}")
            part = part_of(place) if place else ""
            writer.writerow((*row, part, direction, key, kernel[:120], what, place))
    print("The operations that take longest, ms per step:")
    for (key, kernel), (took, calls) in ranked[:25]:
        what, place = program.get(key, ("", ""))
        line = f"{took:8.3f} {took / total:6.1%} {calls:6.1f}x {key} | {kernel[:60]}"
        print(f"{line} | {what} | {place[-90:]}")


def draw(path: pathlib.Path, parts: dict[str, list[float]], step_s: float, name: str) -> None:
    """Draw the parts as bars, forward and backward."""
    total = sum(map(sum, parts.values()))
    figure = Figure(figsize=(8, 0.4 * len(parts) + 1.4), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(parts)
    for backward, label in enumerate(("forward", "backward")):
        widths = [x[backward] for x in parts.values()]
        axes.barh(list(parts), widths, left=left, label=label)
        left = widths
    axes.set_xlabel(f"ms per step; {total:.1f} in all, a step takes {step_s * 1e3:.1f}")
    axes.set_title(name, fontsize=10)
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
