"""Sweeps: many runs, trained and evaluated one after the other by any number of processes.

Start the same command several times, each process with a device of its own, and each takes the
runs that no other process has. Rerun the command to resume, and to repeat the runs that failed.
"""

import contextlib
import fcntl
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from usam_jax.evaluation import checks, evaluate
from usam_jax.training import loop
from usam_jax.utils import console
from usam_jax.utils.errors import DISK_FULL, SomeFailed, Stopped, UsageError, UserError, list_some
from usam_jax.utils.files import read_json, require_folder, write_json, write_text
from usam_jax.utils.mesh import make_mesh
from usam_jax.utils.outputs import Output, check_outputs, is_json_with
from usam_jax.weights import saved_config

SETTINGS = "sweep.json"  # what the sweep is over, in its folder
UNVERSIONED = 4  # schema version of sweeps that do not name theirs


class Run(NamedTuple):
    """One run of a sweep, in the folder NAME/seed_N. `cost` is relative, for the time estimate."""

    name: str
    seed: int
    config: ConfigDict
    cost: float = 1.0

    def folder(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / self.name / f"seed_{self.seed}"

    def result(self, workdir: pathlib.Path) -> pathlib.Path:
        """The file that a finished run has."""
        return workdir / self.name / f"seed_{self.seed}.json"

    def log(self, workdir: pathlib.Path) -> pathlib.Path:
        """The traceback of a run that failed."""
        return workdir / self.name / f"seed_{self.seed}.log"

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


# Trains and evaluates a run in a folder, and returns what a table needs, ready for JSON.
RunFn = Callable[[ConfigDict, pathlib.Path], dict[str, Any]]


def one_mode(config: ConfigDict, fields: dict[str, Any], seed: int) -> ConfigDict:
    """Return a copy of a config with these fields and the seed, evaluated in one prompt mode.

    U-SAM and S are as published, whatever the config says: without deep supervision, and without
    the interactive extension unless `prompts.kind` is "interactive".
    """
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    config.seed = seed
    if "interactive" in config.model:
        config.model.interactive = config.prompts.kind == "interactive"
    if "deep_supervision" in config.model:
        config.model.deep_supervision = 0.0
    config.eval.prompts = config.eval.prompt_jitter_px = ()
    return config


def train_and_evaluate(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Train and evaluate one run, and return the summary of its evaluation."""
    checks.check_all(config, make_mesh())
    loop.train(config, folder, evaluate.make_evaluate_fn)
    return evaluate.evaluate_workdir(config, folder)


def open_sweep(
    workdir: pathlib.Path, kind: str, config: ConfigDict, outputs: tuple[str, ...]
) -> None:
    """Create the folder of a sweep, or check that it holds this one.

    `outputs` are the files that the sweep writes next to its runs. Raises UsageError if the folder
    holds other files under their names, or a sweep of another kind or over another config.
    """
    require_folder(workdir)
    path = workdir / SETTINGS
    is_sweep = is_json_with("kind", "config")
    fix = "Give another --workdir."
    names = (SETTINGS, *outputs)
    what = [Output(workdir / x, "results", fix, lambda _: is_sweep(path)) for x in names]
    check_outputs(what, {})
    given: dict[str, Any] = {"kind": kind, "config": saved_config.to_json(config)}
    saved: dict[str, Any] = read_json(path) or given
    saved["config"].setdefault("schema_version", UNVERSIONED)
    changed = [f"kind: got {kind}, expected {saved['kind']}"] if saved["kind"] != kind else []
    changed += saved_config.differences(config, saved_config.upgrade(saved["config"]))
    # Each run has a seed and a network of its own.
    if changed := [x for x in changed if not x.startswith("config.seed:")]:
        raise UsageError(
            f"{workdir} holds a sweep over another config:\n{list_some(changed)}\n"
            "Give another --workdir, or the same values to resume that sweep."
        )
    write_json(path, saved)


def run_all(workdir: pathlib.Path, runs: list[Run], run_fn: RunFn) -> dict[str, str]:
    """Make the runs that have no result and that no other process is making.

    A run that fails does not end the sweep. Returns the errors of the runs that failed, by run.
    Raises Stopped after a signal, and OSError if the disk is full.
    """
    failed: dict[str, str] = {}
    while todo := [x for x in runs if str(x) not in failed and not x.result(workdir).is_file()]:
        claimed = False
        for run in todo:
            with claim(run.folder(workdir)) as is_mine:
                if not is_mine or run.result(workdir).is_file():
                    continue
                claimed = True
                console.info(describe_progress(workdir, runs, run))
                start = time.monotonic()
                try:
                    result = run_fn(run.config, run.folder(workdir))
                except Stopped:
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in DISK_FULL:
                        raise
                    failed[str(run)] = describe_error(error)
                    write_text(run.log(workdir), traceback.format_exc())
                    console.info(f"{run}: failed: {failed[str(run)]}")
                else:
                    spent = {"seconds": round(time.monotonic() - start, 1), "cost": run.cost}
                    write_json(run.result(workdir), result | spent)
                    run.log(workdir).unlink(missing_ok=True)
            jax.clear_caches()  # The next run compiles another model.
        if not claimed:
            break
    return failed


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[bool]:
    """Whether this process now holds a run alone, until the context ends or the process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_claimed(folder: pathlib.Path) -> bool:
    """Whether another process, or this one, holds a run."""
    with claim(folder) as is_free:
        return not is_free


def describe_progress(workdir: pathlib.Path, runs: list[Run], run: Run) -> str:
    """Return a line on the run that starts, and the time that is left if it can be estimated."""
    left = [x for x in runs if not x.result(workdir).is_file()]
    done = [read_json(x.result(workdir)) for x in runs if x not in left]
    text = f"run {len(done) + 1} of {len(runs)}: {run}"
    if not (cost := sum(x["cost"] for x in done)):
        return text
    rate = sum(x["seconds"] for x in done) / cost
    processes = max(1, sum(is_claimed(x.folder(workdir)) for x in left))
    seconds = rate * sum(x.cost for x in left) / processes
    return f"{text}; about {console.format_time(seconds)} left"


def describe_error(error: Exception) -> str:
    """Return the message of an error for the user, or the type and first line of any other."""
    if isinstance(error, UserError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {first}"


def read_results(workdir: pathlib.Path, runs: list[Run]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the results of finished runs by name and seed, in the order of `runs`."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run.result(workdir).is_file():
            results.setdefault(run.name, {})[run.seed] = read_json(run.result(workdir))
    return results


def finish(workdir: pathlib.Path, runs: list[Run], failed: dict[str, str]) -> None:
    """Raise SomeFailed, which lists them, if runs failed."""
    if failed:
        lines = list_some([f"{name}: {error}" for name, error in failed.items()])
        raise SomeFailed(
            f"{len(failed)} of {len(runs)} runs failed:\n{lines}\nThe tracebacks are in {workdir}/"
            "NAME/seed_N.log. Rerun the same command to repeat these runs."
        )


def count_elsewhere(workdir: pathlib.Path, runs: list[Run]) -> int:
    """Return the number of runs that other processes are making."""
    left = [x for x in runs if not x.result(workdir).is_file()]
    return sum(is_claimed(x.folder(workdir)) for x in left)


def leave_report(workdir: pathlib.Path, runs: list[Run]) -> bool:
    """Return whether another process will write the tables, as it still makes runs, and say so."""
    count = count_elsewhere(workdir, runs)
    if count:
        whose = "1 run is" if count == 1 else f"{count} runs are"
        console.info(f"{whose} being made by other processes; the last one reports")
    return count > 0
