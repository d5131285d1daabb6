"""The command line: separate processes, real files and exit codes."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT, write_care

from usam_jax.utils.files import write_json
from usam_jax.utils.workdir import EvaluationFolder, Workdir

SMALL = {
    "model.variant": "tiny",
    "model.image_size": "32",
    "init_from": "",
    "train.batch_size": "4",
    "train.num_epochs": "4",
    "train.log_every_steps": "1",
    "eval.batch_size": "4",
    "data.val_fraction": "0.3",
    "eval.prompts": "()",
    "eval.prompt_jitter_px": "()",
}


@pytest.fixture(scope="session")
def care_root(made_once):
    return made_once("care", lambda root: write_care(root, num_train=12, num_test=6))


def command(*arguments: str, config: str = "configs/care.py", **fields: str) -> list[str]:
    values = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "-m", "usam_jax.main", f"--config={config}", *values, *arguments]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **changes}


def run(arguments: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        check=False,
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
    )


def small(care_root, packed_dir=None, **changes: str) -> dict[str, str]:
    """Fields of a small run, whose packed data all runs on `care_root` share by default."""
    packed_dir = packed_dir or care_root.with_name("care_packed")
    return {**SMALL, "data.root": str(care_root), "data.packed_dir": str(packed_dir), **changes}


def read_metrics(workdir) -> list[dict]:
    """The metrics of a run without those of its speed."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if "speed/" not in name} for row in rows]


@pytest.fixture(scope="session")
def unbroken(care_root, made_once):
    """The workdir of a small run that was not interrupted, and what it printed."""

    def train(folder):
        done = run(command(f"--workdir={folder / 'run'}", **small(care_root)))
        assert done.returncode == 0, done.stderr
        write_json(folder / "printed.json", {"stdout": done.stdout, "stderr": done.stderr})

    folder = made_once("unbroken", train)
    printed = json.loads((folder / "printed.json").read_text())
    return folder / "run", types.SimpleNamespace(**printed)


def test_run_writes_only_known_paths(unbroken):
    workdir = Workdir(unbroken[0])
    evaluations = [EvaluationFolder(x) for x in workdir.evaluations.iterdir()]
    assert workdir.evaluation("test", "points3") in evaluations
    of_run = {path_of(workdir) for path_of in paths_of(Workdir)}
    assert set(workdir.path.iterdir()) <= of_run
    for folder in evaluations:
        of_evaluation = {path_of(folder) for path_of in paths_of(EvaluationFolder)}
        assert set(folder.path.iterdir()) <= of_evaluation


def paths_of(kind) -> list:
    return [x.fget for x in vars(kind).values() if isinstance(x, property)]


def test_run_writes_table_summary_and_pictures(unbroken):
    workdir, printed = unbroken
    assert "normal rectum" in printed.stdout and "tumour" in printed.stdout
    assert "3 points per class from the ground truth" in printed.stdout
    assert (
        "training: " in printed.stderr and "left" in printed.stderr and "slices/s" in printed.stderr
    )
    folder = workdir / "eval" / "test_points3"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_slices"] == 6
    assert summary["prompts"] == "3 points per class from the ground truth"
    assert set(summary["pooled"]["dice"]) == {"normal rectum", "tumour", "mean"}
    assert (folder / "predictions.png").stat().st_size > 10_000
    assert "3 points per class from the ground truth" in (folder / "report.html").read_text()
    assert "paper: U-SAM-B/P, 3 points per class" in printed.stdout
    rows = read_metrics(workdir)
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == list(range(1, 9))
    assert {"train/ce", "train/dice", "lr/backbone", "lr/mask_decoder"} <= set(trained[0])
    assert any("val/dice/normal_rectum" in row for row in rows)
    assert list((workdir / "tensorboard").iterdir())
    assert {"grad_norm/backbone", "grad_norm/mask_decoder"} <= set(trained[0])
    text = (workdir / "metrics.jsonl").read_text()
    assert "speed/slices_per_second" in text and "speed/data_wait" in text
    assert (workdir / "progress.png").stat().st_size > 10_000
    with (workdir / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == list(range(1, 9))
    assert float(table[-1]["val/dice/mean"]) == rows[-1]["val/dice/mean"]
    record = json.loads((workdir / "run.json").read_text())["starts"][-1]
    assert (record["first_step"], record["last_step"], record["seed"]) == (1, 8, 0)
    assert {"jax", "flax", "orbax-checkpoint"} <= set(record["versions"])


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.faults)])
def test_killed_and_stopped_run_resumes_bit_for_bit(unbroken, care_root, tmp_path, name):
    workdir, expected = tmp_path / "run", read_metrics(unbroken[0])
    arguments = command(f"--workdir={workdir}", **small(care_root))
    process = start(arguments)
    wait_for(process, lambda: any(x.name.isdigit() for x in workdir.glob("checkpoints/*")))
    process.kill()
    process.communicate()
    killed_at = num_metrics(workdir)
    assert killed_at < len(expected)

    process = start(arguments)
    wait_for(process, lambda: num_metrics(workdir) > killed_at)
    process.send_signal(signal.Signals[name])
    _, text = process.communicate()
    assert process.returncode == 130, text
    assert "resuming from step" in text
    assert f"{name}: stopped after step" in text and "rerun the same command to resume" in text
    assert num_metrics(workdir) < len(expected)

    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stderr
    assert read_metrics(workdir) == expected  # bit for bit, every loss and metric


def num_metrics(workdir) -> int:
    return len(read_metrics(workdir)) if (workdir / "metrics.jsonl").is_file() else 0


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], condition) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_eval_mode_repeats_metrics_and_takes_other_prompts(unbroken, care_root):
    workdir, _ = unbroken
    before = json.loads((workdir / "eval" / "test_points3" / "summary.json").read_text())
    done = run(command("--mode=eval", f"--workdir={workdir}", **small(care_root)))
    assert done.returncode == 0, done.stderr
    after = json.loads((workdir / "eval" / "test_points3" / "summary.json").read_text())
    assert after["pooled"] == before["pooled"]
    fields = small(care_root, **{"prompts.kind": "none", "eval.split": "val"})
    done = run(command("--mode=eval", f"--workdir={workdir}", **fields))
    assert done.returncode == 0, done.stderr
    assert "note: the model was trained with other prompts: 3 points per class" in done.stdout
    summary = json.loads((workdir / "eval" / "val_none" / "summary.json").read_text())
    assert summary["prompts"] == "none (automatic)"
    assert summary["num_slices"] == 4


def test_run_from_weights_starts_after_failed_commands(unbroken, care_root, tmp_path):
    workdir = tmp_path / "run"
    for wrong in ({"data.root": "nowhere"}, {"init_from": "nowhere.pth"}):
        done = run(command(f"--workdir={workdir}", **small(care_root, **wrong)))
        assert done.returncode in (3, 5), done.stderr
    # The failed commands do not claim the workdir.
    fields = small(care_root, init_from=str(unbroken[0]), **{"eval.every_epochs": "4"})
    done = run(command(f"--workdir={workdir}", **fields))
    assert done.returncode == 0, done.stderr
    first = read_metrics(workdir)[0]["train/loss"]
    assert first < 0.97 * read_metrics(unbroken[0])[0]["train/loss"]
    done = run(command(f"--workdir={workdir}", **{**fields, "train.num_epochs": "1"}))
    assert done.returncode == 2
    assert "config.train.num_epochs: got 1, expected 4" in done.stderr


class Harm:
    """Creates a folder if `pickle` loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_run_rejects_malicious_checkpoint_unexecuted(care_root, tmp_path):
    harm = tmp_path / "harm"
    path = tmp_path / "sam.pth"
    path.write_bytes(pickle.dumps({"model": Harm(str(harm))}))
    fields = small(care_root, init_from=str(path))
    done = run(command(f"--workdir={tmp_path / 'run'}", **fields))
    assert done.returncode == 5
    assert str(path) in done.stderr and "Traceback" not in done.stderr
    assert not harm.exists()


@pytest.mark.parametrize(
    ("arguments", "fields", "code", "message"),
    [
        ([], {"train.batch": "3"}, 2, "--config.train.batch: no such field, expected"),
        ([], {"train.batch_size": "x"}, 2, "config.train.batch_size=x"),
        (["--mode=predict"], {}, 2, "--mode=predict"),
        (["file"], {}, 2, "arguments: got ['file']"),
        ([], {"prompts.kind": "clicks"}, 2, "config.prompts.kind: got 'clicks'"),
        ([], {"data.root": "nowhere"}, 3, "configs/phantom.py needs no data"),
        ([], {"init_from": "nowhere.pth"}, 5, "nowhere.pth"),
        (["--mode=eval"], {}, 5, "has no finished checkpoint"),
    ],
)
def test_wrong_input_exits_with_its_code_and_no_traceback(
    care_root, tmp_path, arguments, fields, code, message
):
    given = small(care_root, **fields)
    done = run(command(*arguments, f"--workdir={tmp_path / 'run'}", **given))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(care_root, tmp_path):
    given = small(care_root, **{"data.root": "nowhere"})
    done = run(command("--debug", f"--workdir={tmp_path / 'run'}", **given))
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_missing_config_is_an_error():
    done = run([sys.executable, "-m", "usam_jax.main", "--config=configs/nowhere.py"])
    assert done.returncode == 2
    assert "configs/nowhere.py" in done.stderr and "Traceback" not in done.stderr


LIMITED = (
    "import resource, runpy, sys; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
    "sys.argv = sys.argv[1:]; runpy.run_module('usam_jax.main', run_name='__main__')"
)


def test_full_disk_while_packing_is_a_named_error(care_root, tmp_path):
    arguments = command(f"--workdir={tmp_path / 'run'}", **small(care_root, tmp_path))
    limited = [sys.executable, "-c", LIMITED, "8000", *arguments[3:]]
    done = run(limited)
    assert done.returncode == 3, done.stderr
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*/manifest.json"))


@pytest.mark.faults
def test_full_disk_while_saving_keeps_last_good_checkpoint(unbroken, care_root, tmp_path):
    workdir = tmp_path / "run"
    first = command(f"--workdir={workdir}", **small(care_root))
    process = start(first)
    wait_for(process, lambda: any(x.name.isdigit() for x in workdir.glob("checkpoints/*")))
    process.kill()
    process.communicate()
    kept = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    limited = run([sys.executable, "-c", LIMITED, "500000", *first[3:]])
    assert limited.returncode == 5, limited.stderr
    assert "could not be saved" in limited.stderr.rpartition("error: ")[2]
    assert (workdir / "checkpoints" / str(kept)).is_dir()
    assert run(first).returncode == 0
    assert read_metrics(workdir) == read_metrics(unbroken[0])


def test_real_slices_train_and_evaluate(care_samples, tmp_path):
    fields = small(care_samples, tmp_path, **{"eval.select_on": "test", "train.batch_size": "3"})
    done = run(command(f"--workdir={tmp_path / 'run'}", **fields))
    assert done.returncode == 0, done.stderr
    assert np.isfinite(
        [row["train/loss"] for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    ).all()


@pytest.mark.faults
def test_damaged_last_checkpoint_is_skipped(unbroken, care_root, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken[0], workdir)
    last = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for path in last.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    done = run(command(f"--workdir={workdir}", **small(care_root)))
    assert done.returncode == 0, done.stderr
    assert f"{last}: skipped" in done.stderr and "resuming from step" in done.stderr
    assert read_metrics(workdir) == read_metrics(unbroken[0])
    assert (workdir / "damaged" / last.name).is_dir()
