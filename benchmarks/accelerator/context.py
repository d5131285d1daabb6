"""What the runner and its workers share: settings, result files, the clock and timing.

Imports the standard library only: the peers in torch start no JAX.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import pathlib
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from benchmarks.results import COLUMNS, Row, append_csv, describe_device, describe_versions

VARIABLE = "USAM_JAX_ACCELERATOR"  # the environment variable that holds a worker's settings
NOTE_COLUMNS = ("step", "outcome", "seconds", "at")
PEAK = {"bfloat16": 989.4e12, "float32": 494.7e12}  # FLOP/s, dense, H100 and H200 SXM data sheet
# 26,656 slices at batch 32, and the same in every step so that all share one compiled program.
STEPS_PER_EPOCH = 833


class StopAll(Exception):
    """No later step makes sense."""


class NotRun(Exception):
    """This step cannot run on this machine, which is not a failure."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one run.

    `out` holds the result files, `keep` compiled programs and packages for a second run. `started`
    is in seconds since the epoch. Of `budget` seconds, `reserve` are kept for the summary.
    """

    out: pathlib.Path
    keep: pathlib.Path
    dry: bool
    commit: str
    started: float
    budget: float
    reserve: float = 12.0

    def to_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(dataclasses.asdict(self), default=str)}

    @classmethod
    def from_environment(cls) -> Self:
        fields = json.loads(os.environ[VARIABLE])
        return cls(**fields | {x: pathlib.Path(fields[x]) for x in ("out", "keep")})

    @property
    def results(self) -> pathlib.Path:
        return self.out / "results.csv"

    @property
    def notes(self) -> pathlib.Path:
        """How each step of this run ended."""
        return self.keep / f"steps_{self.started:.3f}.csv"

    @property
    def background(self) -> pathlib.Path:
        """Holds the process group of the checks that run in the background, if any do."""
        return self.keep / "background"

    @property
    def timing(self) -> pathlib.Path:
        """Exists while something is timed and the checks are suspended."""
        return self.keep / "timing"

    def seconds_left(self) -> float:
        """Seconds left for steps."""
        return self.started + self.budget - self.reserve - time.time()


@functools.cache
def settings() -> Settings:
    """Settings of the run that this worker belongs to."""
    return Settings.from_environment()


def note(run: Settings, step: str, outcome: str, took: float | None = None) -> None:
    """Record how a step ended, and when, in seconds from the start."""
    at = time.time() - run.started
    duration = "" if took is None else f", {took:.1f} s"
    print(f"=== {step}: {outcome}{duration}, at {at:.0f} s", flush=True)
    row = (step, outcome, "" if took is None else f"{took:.1f}", f"{at:.0f}")
    append_csv(run.notes, NOTE_COLUMNS, [row])


def add(*rows: Row) -> None:
    """Write results as they come: (what, value, unit)."""
    for what, value, unit in rows:
        print(f"{what}: {value:.5g} {unit}".rstrip(), flush=True)
    run, (device, versions) = settings(), describe()
    lines = ((run.commit, device, x, f"{y:.5g}", unit, versions) for x, y, unit in rows)
    append_csv(run.results, COLUMNS, lines)


def describe() -> tuple[str, str]:
    """Device and versions, as the first step saved them: torch's process starts no JAX."""
    run = settings()
    path = run.keep / "device.json"
    if path.is_file():
        device, versions = json.loads(path.read_text())
    else:
        device, versions = describe_device(), describe_versions()
    return ("DRY RUN, " if run.dry else "") + device, versions


def suspend_checks(run: Settings) -> None:
    """Suspend the checks that run in the background.

    `run.timing` holds back those to come.
    """
    run.timing.touch()
    signal_checks(run, signal.SIGSTOP)


def resume_checks(run: Settings) -> None:
    run.timing.unlink(missing_ok=True)
    signal_checks(run, signal.SIGCONT)


def signal_checks(run: Settings, sign: int) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # none run, or none any more
        os.killpg(int(run.background.read_text()), sign)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suspend the checks inside the context."""
    suspend_checks(settings())
    try:
        yield
    finally:
        resume_checks(settings())


def seconds_in_a_row(
    run: Callable[[], Any], wait: Callable[[Any], object], total: float = 1.0
) -> float:
    """Seconds per call if only the last of many calls is waited for.

    The median of three rows.

    `total` is the time that one row may take.
    """
    wait(run())
    start = time.perf_counter()
    wait(run())
    total = 0.02 if settings().dry else total
    calls = max(2, min(200, int(total / (time.perf_counter() - start))))
    took = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            found = run()
        wait(found)
        took.append((time.perf_counter() - start) / calls)
    return statistics.median(took)


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_summary(run: Settings) -> list[dict[str, str]]:
    """Write summary.md: how each step ended, and all results. Returns the steps."""
    notes, rows = read_csv(run.notes), read_csv(run.results)
    about = "; ".join(rows[-1][x] for x in ("device", "versions", "commit")) if rows else "none"
    lines = ["# Results", "", about, ""]
    lines += ["| what | value | unit |", "| --- | --- | --- |"]
    lines += [f"| {x['what']} | {x['value']} | {x['unit']} |" for x in rows]
    lines += ["", "# Steps", "", "| step | outcome | seconds | at |", "| --- | --- | --- | --- |"]
    lines += [f"| {x['step']} | {x['outcome']} | {x['seconds']} | {x['at']} |" for x in notes]
    (run.out / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
    return notes
