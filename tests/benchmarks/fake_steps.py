"""Steps for the tests of the runner: how a step can end, without JAX."""

import os
import time

from benchmarks.accelerator.context import NotRun, StopAll, add, quiet, settings


def succeed(name: str) -> None:
    with quiet():
        add((f"result of {name}", 1.5, "s"))


def fail() -> None:
    raise ValueError("no such lever")


def hang() -> None:
    time.sleep(60)


def crash() -> None:
    os._exit(9)


def refuse() -> None:
    raise NotRun("not installed: timm")


def stop() -> None:
    raise StopAll("no GPU")


def count() -> None:
    """Append to a file until `observe` has seen it."""
    while not (settings().keep / "seen").is_file():
        with (settings().keep / "counts").open("a") as file:
            file.write("x")
        time.sleep(0.01)


def observe() -> None:
    """Raise AssertionError unless `count` pauses inside `quiet` and continues after it."""
    counts = settings().keep / "counts"

    def wait_for_growth() -> None:
        before, until = counts.stat().st_size if counts.is_file() else 0, time.time() + 20
        while not counts.is_file() or counts.stat().st_size <= before:
            assert time.time() < until, "the check in the background does not run"
            time.sleep(0.01)

    wait_for_growth()
    with quiet():
        time.sleep(0.1)
        before = counts.stat().st_size
        time.sleep(0.3)
        assert counts.stat().st_size == before, "the check in the background was not suspended"
    wait_for_growth()
    (settings().keep / "seen").touch()
