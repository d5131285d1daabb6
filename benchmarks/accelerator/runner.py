"""Run the steps in their order within the budget, in worker processes.

A worker runs steps of one kind one after the other, so that they share programs, arrays and
imports. A step that exceeds its limit or brings its process down is given up, and a new worker
continues with the next one. The checks, which are not timed, run in a second lane; it is suspended
while a step is timed.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from benchmarks.accelerator.context import (
    NOTE_COLUMNS,
    Settings,
    StopAll,
    note,
    resume_checks,
    suspend_checks,
    write_summary,
)
from benchmarks.accelerator.steps import XLA_OPTIONS, Step
from benchmarks.results import COLUMNS, ROOT, append_csv

STOPPED = 3  # exit code of a worker after StopAll
POLL_S = 0.3
MEMORY_OF_STEPS = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".75"}
MEMORY_OF_CHECKS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
DRY_LIMITS = 10  # a CPU is slower than a GPU even with small models


class Lane:
    """Steps that run one after the other, in one worker process at a time.

    The lane of the checks (`checks` True) is suspended while the other one times something.
    """

    def __init__(self, run: Settings, steps: list[Step], checks: bool) -> None:
        self.settings, self.queue, self.checks = run, steps, checks
        self.process: subprocess.Popen | None = None
        self.running: list[Step] = []  # the worker's steps, including those that have ended
        self.progress = run.keep / f"progress_{os.getpid()}_{int(checks)}"
        self.suspended, self.last_look = 0.0, time.time()

    def advance(self) -> bool:
        """Start a worker if none runs, or supervise it.

        Returns False if nothing is left to do.

        Raises StopAll if the worker found that no later step makes sense.
        """
        now = time.time()
        self.last_look, elapsed = now, now - self.last_look
        if self.process is None:
            if not self.queue or self.settings.seconds_left() < self.settings.reserve:
                return False
            self.start()
            return True
        ended, began = self.read_progress()
        code = self.process.poll()
        if code == STOPPED:
            raise StopAll
        if code is not None:
            if began:
                call = self.running[ended].call
                note(self.settings, call, f"failed: the process ended with {code}")
                ended += 1
            self.leave(ended)
        elif began:
            if self.checks and self.settings.timing.is_file():
                self.suspended += elapsed
            step, took = self.running[ended], now - began - self.suspended
            if took > step.limit * (DRY_LIMITS if self.settings.dry and step.jax else 1):
                note(self.settings, step.call, f"failed: given up after {took:.0f} s")
                self.end()
                self.leave(ended + 1)
        else:
            self.suspended = 0.0
        return True

    def read_progress(self) -> tuple[int, float]:
        """How many of the worker's steps have ended, and when the current one began, or 0."""
        lines = self.progress.read_text().splitlines()
        last = lines[-1].split() if lines else ["end"]
        ended = sum(x.startswith("end") for x in lines)
        return ended, float(last[1]) if last[0] == "begin" else 0.0

    def start(self) -> None:
        """Start a worker for the steps at the head of the queue that are of one kind."""
        kind = self.queue[0].kind()
        same = [x.kind() == kind for x in self.queue]
        count = same.index(False) if False in same else len(same)
        self.running, self.queue = self.queue[:count], self.queue[count:]
        flags = [os.environ.get("XLA_FLAGS", ""), *(XLA_OPTIONS.get(x, "") for x in kind)]
        environment = {
            **os.environ,
            **self.settings.to_environment(),
            **(MEMORY_OF_CHECKS if self.checks else MEMORY_OF_STEPS),
            "XLA_FLAGS": " ".join(filter(None, flags)),
        }
        self.progress.write_text("")
        command = [sys.executable, "-m", "benchmarks.accelerator.worker"]
        command += [str(self.progress), json.dumps([x._asdict() for x in self.running])]
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
        self.suspended = 0.0
        if self.checks:
            self.settings.background.write_text(str(self.process.pid))
            if self.settings.timing.is_file():
                suspend_checks(self.settings)

    def leave(self, count: int) -> None:
        """Queue what follows the worker's first `count` steps, for a new worker."""
        self.queue, self.running = self.running[count:] + self.queue, []
        self.process = None
        if self.checks:
            self.settings.background.unlink(missing_ok=True)
        else:
            resume_checks(self.settings)  # the worker may have left them suspended

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

    def close(self) -> None:
        """End the worker, and note the steps that did not finish."""
        if self.process is not None:
            ended, began = self.read_progress()
            finished = self.process.poll() == STOPPED
            self.end()
            if began and not finished:
                note(self.settings, self.running[ended].call, "stopped: the budget is spent")
            self.leave(ended + (began > 0))
        for step in self.queue:
            note(self.settings, step.call, "left out")
        self.progress.unlink(missing_ok=True)


def run_all(run: Settings, steps: list[Step], checks: list[Step]) -> int:
    """Run both lanes until they or the budget end.

    Returns the number of steps that failed.
    """
    for path in (run.timing, run.background):  # left by a run that was killed
        path.unlink(missing_ok=True)
    # Both lanes append to these files, so the headers come first.
    append_csv(run.notes, NOTE_COLUMNS, [])
    append_csv(run.results, COLUMNS, [])
    lanes = Lane(run, steps, checks=False), Lane(run, checks, checks=True)
    try:
        while run.seconds_left() > 0:
            busy = [x.advance() for x in lanes]
            if not any(busy):
                break
            time.sleep(POLL_S)
    except StopAll:
        print("stopped: no later step makes sense", flush=True)
    finally:
        for lane in lanes:
            lane.close()
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
