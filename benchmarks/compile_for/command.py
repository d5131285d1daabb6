"""Compile the model for a GPU without one, check the programs and predict their time.

Needs JAX's plugin for CUDA (the extra cuda13), not a GPU. The times are arithmetic on the kernels
that XLA makes, with the rates of `target`: predictions, not measurements. A program takes minutes
of one core. `--out` gets the programs' text and the totals as rows of results.csv. Exit code 1: a
check failed; 2: the plugin is not installed.
"""

import argparse
import gzip
import pathlib
import sys
import time
from typing import Any

from benchmarks.accelerator.command import find_commit
from benchmarks.compile_for import target
from benchmarks.results import COLUMNS, Row, append_csv, describe_versions

SUMMARY = "compile for a GPU without one; kernels, bytes and predicted time by part"
NAMES = ("train", "eval", "click")


def names(text: str) -> list[str]:
    found = [x for x in text.split(",") if x]
    if wrong := sorted(set(found) - set(NAMES)):
        raise argparse.ArgumentTypeError(
            f"got {', '.join(wrong)}, expected some of {', '.join(NAMES)}"
        )
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--device", choices=sorted(target.GPUS), required=True, help="the GPU to compile for")
    add("--programs", type=names, default=list(NAMES), help="some of train,eval,click")
    add("--network", default="usam", help="the network (default: usam)")
    add("--variant", default="", help="config.model.variant (default: the network's)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--batch", type=int, default=32, help="slices per device in training (default: 32)")
    add("--eval_batch", type=int, default=128, help="the same in evaluation (default: 128)")
    add("--devices", type=int, default=1, help="GPUs, 8 to a host (default: 1)")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/compile_for"), help="folder")
    add("--reference", action="store_true", help="leave out the forms for GPUs (models/ops/gpu.py)")
    add("--commit", help="the commit to record, if the project is not a git repository here")


def main(arguments: argparse.Namespace) -> int:
    """Compile the programs and print their tables.

    Returns 1 if a check failed and 2 if the plugin is missing.
    """
    if missing := target.missing_packages():
        print(target.plugin_error(missing), file=sys.stderr)
        return 2
    target.prepare_environment()
    from usam_jax.utils import runtime

    runtime.keep_memory()
    arguments.out.mkdir(parents=True, exist_ok=True)
    gpu, faults = target.GPUS[arguments.device], 0
    mesh = target.make_mesh(gpu, arguments.devices)
    about = arguments.commit or find_commit(), gpu.name
    for name in arguments.programs:
        rows, problems = examine(name, arguments, gpu, mesh)
        faults += len(problems)
        named = ((*about, x, f"{y:.4g}", unit, describe_versions()) for x, y, unit in rows)
        append_csv(arguments.out / "results.csv", COLUMNS, named)
    return int(faults > 0)


def examine(
    name: str, arguments: argparse.Namespace, gpu: target.Gpu, mesh: Any
) -> tuple[list[Row], list[str]]:
    """Compile one program, print what it does and return its totals and the failed checks."""
    from benchmarks.compile_for import kernels, programs
    from usam_jax.models.ops.gpu import forms

    each = {"train": arguments.batch, "eval": arguments.eval_batch, "click": 1}[name]
    batch = each * mesh.size
    config = programs.make_config(arguments.network, arguments.variant, arguments.dtype, batch)
    size = config.model.get("variant", arguments.network)
    title = f"{name}, {size}, {arguments.dtype}, batch {each}"
    title += f" on each of {mesh.size} devices" * (mesh.size > 1)
    title += ", references" * arguments.reference
    start = time.perf_counter()
    with forms(not arguments.reference):
        lowered = programs.PROGRAMS[name](config, mesh)
    compiled = lowered.compile()
    took, text = time.perf_counter() - start, compiled.as_text()
    path = arguments.out / f"{title.replace(', ', '_').replace(' ', '_')}.hlo.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    found = kernels.read(text)
    totals, memory = kernels.by_part(found, gpu), memory_of(compiled)
    print(f"\n{title}: predicted for {gpu.description}; lowered and compiled in {took:.0f} s")
    for part, one in totals.items():
        print(
            f"{one.seconds * 1e3:8.2f} ms {one.bytes / 1e9:8.2f} GB {one.flop / 1e12:8.3f} TFLOP "
            f"{one.kernels:6d} kernels  {part}"
        )
    whole = totals["the whole"]
    print(f"at most {each / whole.seconds:.0f} slices/s per device without communication")
    print(f"memory {memory / 1e9:.2f} GB, {memory / gpu.memory_bytes:.0%} of the device's")
    sent = communication(text, title, each, gpu, mesh.size)
    problems = check(text, found, programs.largest_kernel(config), lowered.as_text(), config)
    if memory > gpu.memory_bytes:
        problems.append(
            f"memory: got {memory / 1e9:.1f} GB, the device has {gpu.memory_bytes / 1e9:.1f}"
        )
    for problem in problems:
        print(f"FAILED: {problem}")
    return [
        (f"predicted step: {title}", whole.seconds * 1e3, "ms"),
        (f"predicted speed: {title}", each / whole.seconds, "slices/s per device"),
        (f"predicted bytes: {title}", whole.bytes / 1e9, "GB"),
        (f"predicted kernels: {title}", float(whole.kernels), ""),
        (f"predicted memory: {title}", memory / 1e9, "GB"),
        *sent,
    ], problems


def communication(text: str, title: str, each: int, gpu: target.Gpu, num_devices: int) -> list[Row]:
    """Print what a program sends and for how long, and return its rows by link."""
    from benchmarks.compile_for import kernels, timeline
    from benchmarks.hlo import bytes_by_kind, collectives

    sent = collectives(text)
    rows: list[Row] = []
    for kind, num_bytes in bytes_by_kind(sent).items():
        count = sum(x.kind == kind for x in sent)
        print(f"{kind}: {count} calls, {num_bytes / 1e6:.1f} MB per device")
        rows += [(f"predicted {kind}: {title}", num_bytes / 1e6, "MB per device")]
        rows += [(f"predicted calls of {kind}: {title}", float(count), "")]
    program = kernels.instructions(text)
    for link in (x for x in timeline.LINKS if x.num_gpus == num_devices):
        step = timeline.predict(program, gpu, link)
        print(
            f"{link.name}: kernels {step.kernels * 1e3:.2f} ms, collectives "
            f"{step.collectives * 1e3:.2f} ms, both as scheduled {step.scheduled * 1e3:.2f} ms, "
            f"at most {each / step.scheduled:.0f} slices/s per device"
        )
        rows += [(f"predicted step, {link.name}: {title}", step.scheduled * 1e3, "ms")]
        apart = step.kernels + step.collectives
        rows += [(f"predicted step, {link.name}, no overlap: {title}", apart * 1e3, "ms")]
    return rows


def memory_of(compiled: Any) -> int:
    """Bytes of a device that a program needs, arguments included."""
    found = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes


def check(text: str, found: list[Any], largest: int, lowered: str, config: Any) -> list[str]:
    """The faults that a program has."""
    from benchmarks.compile_for import kernels
    from benchmarks.hlo import products

    problems = [
        f"a window as large as a map: {x.window} pixels, expected at most {largest}, in {x.place}"
        for x in kernels.wide_windows(found, largest)
    ]
    problems += [f"a call of the host: {x[:200]}" for x in kernels.host_calls(text)]
    if config.model.dtype == "bfloat16":
        # Positions of points stay float32: in bfloat16 they would be off by half a pixel.
        problems += [
            f"a float32 product in a bfloat16 program: {x.operands[0]} by {x.operands[1]}"
            for x in products(lowered)
            if x.multiplied != ("bf16", "bf16") and x.operands[1].shape[:1] != (2,)
        ]
    return problems
