"""Measures how fast parts of this package are, and keeps the figures with commit and device.

    python -m benchmarks eval
    python -m benchmarks train
    python -m benchmarks epochs
    python -m benchmarks parts
    python -m benchmarks click
    python -m benchmarks data
    python -m benchmarks startup
    python -m benchmarks report
    python -m benchmarks cost
    python -m benchmarks scaling

`eval`, `train`: slices of 224x224 a second through the full model, as a share of what one large
matrix product reaches in the same run, with the memory they take; SAM's encoder beside that of
the transformers library where torch is installed. `parts`: the same of each part alone. `epochs`:
steps fed by the real pipeline, and how long 100 epochs of CARE take at their rate. `click`: how
long a click takes, and the share of the model in predicting a volume. `data`: training slices of
224x224 a second of one core's time, from packed arrays with the published augmentation and 3 points
per class, beside a loader that works as the published one does; packing from CARE's files; and how
long 100,000 packed slices take to open. `startup`: seconds to the first training step, with and without a cache of compiled programs.
`report`: CPU seconds of the model, of scoring cases and of the report in an evaluation. `cost`: time
and memory against image size, classes and prompts. `scaling`: bytes that a step sends on 8 devices,
and what that lets one expect of real ones.

Figures go to benchmarks/results.csv and from there into docs/performance.md; `parts` and `cost`
are drawn into docs/performance/.
"""

import argparse
import csv
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable

import cv2
import jax
from rich.console import Console
from rich.table import Table

from benchmarks.cost import draw_cost, measure_cost
from benchmarks.data import measure_data
from benchmarks.epochs import measure_epochs
from benchmarks.evaluation import measure_evaluation
from benchmarks.limits import ROOT, Row
from benchmarks.page import write_page
from benchmarks.parts import draw_parts, measure_parts
from benchmarks.prediction import measure_prediction
from benchmarks.scaling import measure_scaling
from benchmarks.startup import measure_startup
from benchmarks.training import measure_eval, measure_train
from usam_jax.utils import runtime, xla_flags

RESULTS = ROOT / "benchmarks" / "results.csv"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"
COLUMNS = ("commit", "device", "what", "figure", "unit", "versions")


def describe_device() -> str:
    """The accelerators, or the processor's name and the number of its cores."""
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def describe_versions() -> str:
    """Python and JAX."""
    return f"Python {platform.python_version()}, jax {jax.__version__}"


def describe_commit() -> str:
    """The commit, with a + where the working tree has changes."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    changes = subprocess.check_output(
        [*git, "status", "--porcelain", ":!benchmarks", ":!docs"], text=True
    )
    return commit + ("+" if changes else "")


def report(figures: list[Row], commit: str) -> None:
    """Prints the figures and appends them to benchmarks/results.csv."""
    device = describe_device()
    table = Table(title=f"{commit}, {device}", title_justify="left")
    for name in COLUMNS[2:5]:
        table.add_column(name, justify="right" if name == "figure" else "left")
    for what, figure, unit in figures:
        table.add_row(what, f"{figure:.4g}", unit)
    Console(highlight=False, soft_wrap=True).print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    fresh = not RESULTS.is_file()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS] * fresh)
        versions = describe_versions()
        writer.writerows(
            (commit, device, x, f"{figure:.4g}", unit, versions) for x, figure, unit in figures
        )


MEASURES: dict[str, Callable[[], list[Row]]] = {
    "eval": measure_eval,
    "train": measure_train,
    "epochs": measure_epochs,
    "parts": measure_parts,
    "click": measure_prediction,
    "data": measure_data,
    "startup": measure_startup,
    "report": measure_evaluation,
    "cost": measure_cost,
    "scaling": measure_scaling,
}


OF_THE_CPU = ("click", "report", "cost")  # what these measure is the time of its cores


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=MEASURES)
    cv2.setNumThreads(1)
    xla_flags.use_fast_convolutions()
    what = parser.parse_args().what
    if what != "click":  # whoever uses the Predictor has memory as it is
        runtime.keep_memory()
    expected = ("cpu",) if what in OF_THE_CPU else ("cpu", "gpu")
    if (found := jax.default_backend()) not in expected:
        parser.error(f"{what}: found JAX on {found}, expected {' or '.join(expected)}")
    jax.config.update("jax_enable_compilation_cache", False)
    commit = describe_commit()
    figures = MEASURES[what]()
    report(figures, commit)
    PICTURES.mkdir(parents=True, exist_ok=True)
    if what == "cost":
        draw_cost(PICTURES / "cost.png", figures)
    if what == "parts":
        draw_parts(PICTURES / "parts.png", RESULTS, describe_device())
    write_page(PAGE, RESULTS)


if __name__ == "__main__":
    main()
