"""A worker process: runs the steps that it is given, one after the other.

`python -m benchmarks.accelerator.worker PROGRESS STEPS`; PROGRESS is the file in which the runner
sees when steps begin and end, STEPS a JSON list of steps.
"""

import json
import pathlib
import sys
import time
import traceback

from benchmarks.accelerator.context import NotRun, StopAll, note, settings
from benchmarks.accelerator.runner import STOPPED
from benchmarks.accelerator.steps import Step


def work(progress: pathlib.Path, steps: list[Step]) -> int:
    """Run each step that there is time for. Returns the exit code."""

    def record(event: str) -> None:
        with progress.open("a") as file:
            file.write(f"{event} {time.time()}\n")

    run = settings()
    if any(x.jax for x in steps):
        from benchmarks.accelerator.prepare import prepare_jax

        prepare_jax()
    for step in steps:
        record("begin")
        if run.seconds_left() < step.likely * (0.1 if run.dry else 0.7):
            note(run, step.call, f"left out: {run.seconds_left():.0f} s are left")
            record("end")
            continue
        print(f"--- {step.call}", flush=True)
        outcome, stop, start = "done", False, time.monotonic()
        try:
            function, arguments = step.resolve()
            function(*arguments)
        except NotRun as reason:
            outcome = f"does not run: {reason}"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the next step still runs
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            outcome = f"failed: {type(error).__name__}: {first[:200]}"
            stop = isinstance(error, StopAll)
        note(run, step.call, outcome, time.monotonic() - start)
        if stop:
            return STOPPED
        record("end")
    return 0


if __name__ == "__main__":
    sys.exit(work(pathlib.Path(sys.argv[1]), [Step(**x) for x in json.loads(sys.argv[2])]))
