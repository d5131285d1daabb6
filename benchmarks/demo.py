"""The demo as recorded: docs/demo/record.json and README.md's pictures.

README.md states the values that the record has; a test compares the two.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.results import ROOT, describe_commit, describe_device, describe_versions
from usam_jax.utils.files import read_json, write_json
from usam_jax.utils.workdir import Workdir

FOLDER = ROOT / "docs" / "demo"
RECORD = FOLDER / "record.json"
SEEDS = (0,)
MODE = ("test", "points3")  # the evaluation that the report shows


def measure_demo() -> None:
    """Train and evaluate the demo once per seed.

    About ten minutes per seed on two CPU cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_demo(pathlib.Path(folder) / str(seed), seed) for seed in SEEDS]
        FOLDER.mkdir(parents=True, exist_ok=True)
        files = Workdir(pathlib.Path(folder) / "0").evaluation(*MODE)
        for picture in (files.corrections, files.clicks):
            shutil.copy(picture, FOLDER)
    about = {
        "commit": describe_commit(),
        "device": describe_device(),
        "versions": describe_versions(),
    }
    write_json(RECORD, {**about, "runs": runs})
    print(json.dumps(runs, indent=1))


def run_demo(workdir: pathlib.Path, seed: int) -> dict[str, Any]:
    """Steps, seconds from start to report, and the mean Dice in each prompt mode."""
    command = [sys.executable, "-m", "usam_jax.main", "--config=configs/phantom.py"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}"]
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - start
    files = Workdir(workdir)
    summary = read_json(files.evaluation(*MODE).summary)
    others = {mode: found["dice"]["mean"] for mode, found in summary["other_prompts"].items()}
    return {
        "seed": seed,
        "steps": read_json(files.run)["starts"][-1]["last_step"],
        "seconds": round(seconds),
        "dice": {"points3": summary["pooled"]["dice"]["mean"], **others},
        "clicks": summary["clicks"],
    }
