"""Run the steps in their order within the budget, in worker processes.

A worker runs steps of one kind one after the other, so that they share programs, arrays and
imports. A step that exceeds its limit or brings its process down is given up, and a new worker
continues with the next one. The checks, which are not timed, run in a second lane; it is suspended
while a step is timed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from benchmarks.accelerator.context import Settings, note, write_summary
from benchmarks.accelerator.steps import NEEDED, XLA_OPTIONS, Step
from benchmarks.results import ROOT

STOPPED = 3  # exit code of a worker after StopAll
RESERVE = 12.0  # seconds kept for the summary
DRY_LIMITS = 10  # a CPU is slower than a GPU even with small models


def retry(run: Settings, call: str) -> bool:
    """Whether to repeat a failed step with the decoder's convolutions split."""
    if call not in NEEDED or run.split_convolutions.is_file():
        return False
    run.split_convolutions.touch()
    return call == NEEDED[-1]


class Lane:
    """Steps that run one after the other, in one worker process at a time."""

    def __init__(
        self, run: Settings, steps: list[Step], environment: dict[str, str], name: str
    ) -> None:
        self.settings, self.queue, self.environment = run, steps, environment
        self.process: subprocess.Popen | None = None
        self.running: list[Step] = []  # the worker's steps, including those that have ended
        self.progress = run.keep / f"progress_{name}_{os.getpid()}"
        self.stopped = False

    def advance(self, background: "Lane | None") -> bool:
        """Start a worker if none runs, or supervise it; False if nothing is left to do."""
        if self.process is None:
            if not self.queue or self.settings.seconds_left() < 2 * RESERVE:
                return False
            self.start(background)
            return True
        lines = self.progress.read_text().splitlines()
        ended, begun = (sum(x.startswith(y) for x in lines) for y in ("end", "begin"))
        busy = begun > ended
        code = self.process.poll()
        if code == STOPPED:
            self.process, self.stopped = None, True
            return False
        if code is not None:
            if busy:
                call = self.running[ended].call
                note(self.settings, call, f"failed: the process ended with {code}")
                busy = not retry(self.settings, call)
            self.leave(ended + busy, background)
        elif busy:
            step, took = self.running[ended], time.time() - float(lines[-1].split()[1])
            limit = step.limit * (DRY_LIMITS if self.settings.dry and step.jax else 1)
            if took > limit or self.settings.seconds_left() < RESERVE:
                note(self.settings, step.call, f"failed: given up after {took:.0f} s")
                self.end()
                self.leave(ended + 1 - retry(self.settings, step.call), background)
        return True

    def start(self, background: "Lane | None") -> None:
        """Start a worker for the steps at the head of the queue that are of one kind."""
        kind = self.queue[0].kind()
        same = [x.kind() == kind for x in self.queue]
        count = same.index(False) if False in same else len(same)
        self.running, self.queue = self.queue[:count], self.queue[count:]
        group = background.process.pid if background and background.process else 0
        flags = [os.environ.get("XLA_FLAGS", ""), *(XLA_OPTIONS.get(x, "") for x in kind)]
        environment = {
            **os.environ,
            **self.environment,
            **dataclasses.replace(self.settings, background=group).to_environment(),
            "XLA_FLAGS": " ".join(filter(None, flags)),
        }
        self.progress.write_text("")
        command = [sys.executable, "-m", "benchmarks.accelerator.worker"]
        command += [str(self.progress), json.dumps([x._asdict() for x in self.running])]
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)

    def leave(self, count: int, background: "Lane | None") -> None:
        """Queue what follows the worker's first `count` steps, for a new worker."""
        self.queue, self.process = self.running[count:] + self.queue, None
        if background and background.process:  # the worker may have left it suspended
            with contextlib.suppress(ProcessLookupError):
                os.killpg(background.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """End the worker and all its children."""
        if self.process is None:
            return
        for sign in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                break
            time.sleep(1 if sign == signal.SIGTERM else 0)
        self.process.wait()


def run_all(run: Settings, steps: list[Step], checks: list[Step]) -> int:
    """Run both lanes until they or the budget end; the number of steps that failed."""
    background = Lane(run, checks, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, "checks")
    timed = Lane(run, steps, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".75"}, "steps")
    try:
        while run.seconds_left() > RESERVE:
            alive = [timed.advance(background), background.advance(None)]
            if timed.stopped or not any(alive):
                break
            time.sleep(0.3)
    finally:
        for lane in (timed, background):
            lane.end()
            lane.progress.unlink(missing_ok=True)
    for lane in (timed, background):
        for step in lane.queue:
            note(run, step.call, "left out")
    notes = write_summary(run)
    return sum(x["outcome"].startswith("failed") for x in notes)


def install_wheels(wheels: pathlib.Path, site: pathlib.Path) -> None:
    """Install a folder of wheels into `site`, without a network. Raises CalledProcessError."""
    done = site / ".complete"
    if not done.is_file():
        options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site)]
        files = [str(x) for x in sorted(wheels.glob("*.whl"))]
        subprocess.run([*command, *files], check=True, timeout=90)
        done.touch()
