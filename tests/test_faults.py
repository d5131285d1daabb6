"""Faults of real machines, caused in separate processes (`make faults`).

Each test is a row of docs/reliability.md.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, write_care
from ml_collections import ConfigDict
from test_end_to_end import command, environment, read_metrics, run, small

from usam_jax.weights import run_checkpoint

pytestmark = pytest.mark.faults

EPOCHS = {"train.num_epochs": "160", "eval.every_epochs": "40", "train.checkpoint_every_steps": "7"}


@pytest.fixture(scope="module")
def care_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("care")
    write_care(root, num_train=12, num_test=6)
    return root


def start(arguments, **changes) -> subprocess.Popen:
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(**changes), stderr=subprocess.PIPE, text=True
    )


def last_checkpoint(workdir: pathlib.Path) -> pathlib.Path:
    return max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def assert_same_run(workdir, unbroken):
    """Assert the same metrics at every step and the same final parameters, bit for bit."""
    assert read_metrics(workdir) == read_metrics(unbroken)
    config = ConfigDict(json.loads((unbroken / "config.json").read_text())["model"])
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step = int(last_checkpoint(unbroken).name)
    found, expected = (
        run_checkpoint.load_variables(x, config, step, device) for x in (workdir, unbroken)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.fixture(scope="module")
def unbroken(care_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    workdir = folder / "run"
    done = run(command(f"--workdir={workdir}", **small(care_root, folder, **EPOCHS)))
    assert done.returncode == 0, done.stderr
    return workdir


def test_run_survives_twenty_sigkills(unbroken, care_root, tmp_path):
    workdir, draw = tmp_path / "run", random.Random(0)
    arguments = command(f"--workdir={workdir}", **small(care_root, tmp_path, **EPOCHS))
    kills = 0
    while True:
        process = start(arguments)
        began, seconds = None, draw.uniform(0.0, 2.0)
        while process.poll() is None:
            path = workdir / "metrics.jsonl"
            if began is None and path.is_file() and "run.json" in os.listdir(workdir):
                began = time.monotonic()
            if kills < 20 and began and time.monotonic() - began > seconds:
                process.kill()
                kills += 1
            time.sleep(0.01)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills == 20
    assert_same_run(workdir, unbroken)


def test_packing_survives_twenty_sigkills(care_root, tmp_path):
    expected, draw = tmp_path / "unbroken", random.Random(1)
    pack = [sys.executable, "-m", "tools.prepare", str(care_root)]
    assert run([*pack, str(expected)]).returncode == 0
    target = tmp_path / "packed"
    for _ in range(20):
        process = start([*pack, str(target)])
        while process.poll() is None and not target.is_dir():
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.25))
        process.kill()
        process.communicate()
        if (target / "manifest.json").is_file():
            assert (
                run([sys.executable, "-m", "tools.prepare", str(target), "--check"]).returncode == 0
            )
            shutil.rmtree(target)
    assert run([*pack, str(target)]).returncode == 0
    for path in expected.glob("*/*.npy"):
        assert path.read_bytes() == next(target.glob(f"*/{path.name}")).read_bytes()


def test_run_resumes_past_truncated_last_checkpoint(unbroken, care_root, tmp_path):
    draw = random.Random(2)
    for number in range(10):
        workdir = tmp_path / f"run_{number}"
        shutil.copytree(unbroken, workdir)
        last = last_checkpoint(workdir)
        damaged = draw.choice(
            sorted(x for x in last.rglob("*") if x.is_file() and x.stat().st_size)
        )
        content = damaged.read_bytes()
        damaged.write_bytes(content[: draw.randrange(len(content))])
        done = run(command(f"--workdir={workdir}", **small(care_root, tmp_path, **EPOCHS)))
        assert done.returncode == 0, (damaged, done.stderr)
        assert_same_run(workdir, unbroken)


def test_killed_process_ends_the_other_within_a_minute(care_root, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fields = small(care_root, tmp_path, **{**EPOCHS, "train.num_epochs": "500"})
    workdir = tmp_path / "run"
    arguments = command(
        f"--workdir={workdir}", f"--coordinator=localhost:{port}", "--num_processes=2", **fields
    )
    processes = [start([*arguments, f"--process_id={i}"]) for i in range(2)]
    while not (workdir / "metrics.jsonl").is_file() or len(read_metrics(workdir)) < 3:
        assert all(x.poll() is None for x in processes)
        time.sleep(0.05)
    processes[1].kill()
    killed = time.monotonic()
    _, text = processes[0].communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert processes[0].returncode not in (0, None)
    assert "failed" in text or "fatal" in text.lower()
    processes[1].communicate()


def test_two_processes_stop_together_and_one_resumes_alone(unbroken, care_root, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workdir = tmp_path / "run"
    alone = command(f"--workdir={workdir}", **small(care_root, tmp_path, **EPOCHS))
    together = [*alone, f"--coordinator=localhost:{port}", "--num_processes=2"]
    processes = [start([*together, f"--process_id={i}"]) for i in range(2)]
    while not (workdir / "metrics.jsonl").is_file() or len(read_metrics(workdir)) < 3:
        assert all(x.poll() is None for x in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    texts = [x.communicate(timeout=120)[1] for x in processes]
    assert [x.returncode for x in processes] == [130, 130], texts
    step = int(last_checkpoint(workdir).name)
    assert f"SIGTERM: stopped after step {step} of" in texts[0]
    done = run(alone)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step}" in done.stderr
    found, expected = read_metrics(workdir), read_metrics(unbroken)
    assert [x["step"] for x in found] == [x["step"] for x in expected]
    # Two processes sum over the batch in another order, so rounding differs.
    assert abs(found[0]["train/loss"] - expected[0]["train/loss"]) < 1e-5
    assert (workdir / "eval" / "test_points3" / "summary.json").is_file()


def test_killed_data_worker_ends_the_run_with_an_error(care_root, tmp_path):
    workdir = tmp_path / "run"
    fields = small(
        care_root, tmp_path, **{**EPOCHS, "train.num_epochs": "500", "data.num_workers": "1"}
    )
    process = start(command(f"--workdir={workdir}", **fields))
    while not (workdir / "metrics.jsonl").is_file() or len(read_metrics(workdir)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"],
        check=True,
        capture_output=True,
        text=True,
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 1, text
    assert "a process that prepares data was killed" in text and "Traceback" not in text


def test_unwritable_workdir_is_rejected(care_root, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir(mode=0o555)
    wrap = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = run([*wrap, *command(f"--workdir={workdir}", **small(care_root, tmp_path))])
    assert done.returncode == 2, done.stderr
    assert "is not writable" in done.stderr


def test_run_ignores_clock_that_jumps_back(unbroken, care_root, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(last_checkpoint(workdir))
    for age, path in enumerate(sorted(workdir.rglob("*"), reverse=True)):
        os.utime(path, (age * 1e6, age * 1e6))
    for path in (workdir / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        content = json.loads(path.read_text())
        times = {name: 1 for name in content if name.endswith("timestamp_nsecs") and content[name]}
        path.write_text(json.dumps(content | times))
    done = run(command(f"--workdir={workdir}", **small(care_root, tmp_path, **EPOCHS)))
    assert done.returncode == 0, done.stderr
    assert_same_run(workdir, unbroken)
