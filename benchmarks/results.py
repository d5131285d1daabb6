"""Rows of results.csv: what was measured, at which commit and on which device.

Imports the standard library only, so that `benchmarks.accelerator` can start before its packages
are installed.
"""

import csv
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.csv"
COLUMNS = ("commit", "device", "what", "value", "unit", "versions")

Row = tuple[str, float, str]  # what, value, unit


def describe_device() -> str:
    """Name and number of the devices, and of a pinned process the number of its cores."""
    from usam_jax.utils.runtime import describe_devices

    name = describe_devices()
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
        name += f", pinned to {len(os.sched_getaffinity(0))}"
    return name


def describe_versions() -> str:
    """Versions of Python and JAX."""
    import jax

    return f"Python {platform.python_version()}, jax {jax.__version__}"


def describe_commit() -> str:
    """Short hash of HEAD, with a + if code outside benchmarks/ and docs/ has changes.

    Raises CalledProcessError if the project is not a git repository.
    """
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    changes = subprocess.check_output(
        [*git, "status", "--porcelain", ":!benchmarks", ":!docs"], text=True
    )
    return commit + ("+" if changes else "")


def append_csv(path: pathlib.Path, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
    """Append rows to a CSV file, which starts with a header if it is new."""
    fresh = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns] * fresh)
        writer.writerows(rows)
