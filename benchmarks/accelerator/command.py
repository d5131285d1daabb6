"""Take all measurements of one GPU by one command, the most wanted first.

Everything is written as it comes, so a run that ends early leaves what it had. The results are
described in docs/how-to/measure-an-accelerator.md. Exit code 1: a step failed, see summary.md.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.accelerator.context import Settings
from benchmarks.accelerator.runner import install_wheels, run_all
from benchmarks.accelerator.steps import CHECKS, STEPS, select
from benchmarks.results import describe_commit

SUMMARY = "all measurements of one GPU, the most wanted first, within a budget"
# Shortens compilation on a CPU; a dry run times nothing.
DRY_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def folder(text: str) -> pathlib.Path:
    return pathlib.Path(text).absolute()


def names(text: str) -> list[str]:
    return [x for x in text.split(",") if x]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--out", type=folder, default=folder("runs/accelerator"), help="folder of the results")
    add("--budget", type=float, default=520, help="seconds for everything (default: 520)")
    add("--only", type=names, default=[], help="parts of the names of steps, comma-separated")
    add("--skip", type=names, default=[], help="the same, of steps to leave out")
    add("--dry", action="store_true", help="run every step with tiny models on a CPU")
    add("--commit", help="the commit to record, if the project is not a git repository here")
    add("--wheels", type=folder, help="folder of wheels to install into --keep first")
    add("--keep", type=folder, help="folder of compiled programs and packages for a second run")
    add("--list", action="store_true", help="print the steps and exit")


def find_commit() -> str:
    try:
        return describe_commit()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy without .git is measured too, see --commit


@contextlib.contextmanager
def logged(path: pathlib.Path) -> Iterator[None]:
    """Append the output of this process and of its children to a file as well."""
    tee = subprocess.Popen(["tee", "-a", str(path)], stdin=subprocess.PIPE, start_new_session=True)
    assert tee.stdin is not None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(x) for x in (1, 2)]
    for number in (1, 2):
        os.dup2(tee.stdin.fileno(), number)
    tee.stdin.close()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), saved, strict=True):
            os.dup2(before, number)
            os.close(before)
        tee.wait(timeout=10)


def main(arguments: argparse.Namespace) -> int:
    """Run the selected steps.

    Returns 1 if one of them failed.
    """
    steps, checks = (select(x, arguments.only, arguments.skip) for x in (STEPS, CHECKS))
    if arguments.list:
        for step in (*steps, *checks):
            print(f"{step.call:<40} likely {step.likely:.0f} s, limit {step.limit:.0f} s")
        return 0
    if not steps and not checks:
        raise SystemExit(
            f"--only, --skip: got {','.join(arguments.only)}, {','.join(arguments.skip)}, expected "
            "parts of the names of steps. Print them with --list."
        )
    suffix = "_dry" if arguments.dry else ""
    keep = arguments.keep or folder(tempfile.gettempdir()) / f"usam_jax_accelerator{suffix}"
    started = time.time()
    run = Settings(
        out=arguments.out,
        keep=keep,
        dry=arguments.dry,
        commit=arguments.commit or find_commit(),
        started=started,
        budget=arguments.budget,
    )
    for path in (run.out, run.keep):
        path.mkdir(parents=True, exist_ok=True)
    if run.dry:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {DRY_FLAGS}".strip()
        os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    with logged(run.out / "log.txt"):
        if arguments.wheels:
            install_wheels(arguments.wheels, run.keep / "site")
            folders = [str(run.keep / "site"), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        os.environ["PYTHONUNBUFFERED"] = "1"
        return int(run_all(run, steps, checks) > 0)
