"""Sweeps over runs: resuming, failing runs, and several processes."""

import errno

import pytest
from ml_collections import ConfigDict

from usam_jax.evaluation import sweep
from usam_jax.utils.errors import SomeFailed, Stopped, UsageError
from usam_jax.utils.files import read_json, write_json

RUNS = [
    sweep.Run(name, seed, ConfigDict({"name": name, "seed": seed}), cost)
    for seed in (0, 1)
    for name, cost in (("small", 1.0), ("large", 3.0))
]


def make_run_fn(**problems):
    """A fast run that raises the error for its name, and the list of runs that it is called for."""
    called = []

    def run_fn(config, folder):
        called.append(f"{config.name}, seed {config.seed}")
        if error := problems.get(f"{config.name}_{config.seed}"):
            raise error
        return {"value": config.seed}

    return run_fn, called


def test_sweep_resumes_after_a_stop(tmp_path):
    run_fn, called = make_run_fn(small_1=Stopped("SIGTERM"))
    with pytest.raises(Stopped):
        sweep.run_all(tmp_path, RUNS, run_fn)
    assert called == ["small, seed 0", "large, seed 0", "small, seed 1"]
    run_fn, called = make_run_fn()
    assert sweep.run_all(tmp_path, RUNS, run_fn) == {}
    assert called == ["small, seed 1", "large, seed 1"]
    results = sweep.read_results(tmp_path, RUNS)
    assert {name: list(found) for name, found in results.items()} == {
        "small": [0, 1],
        "large": [0, 1],
    }
    assert results["large"][1]["value"] == 1 and results["large"][1]["cost"] == 3


def test_failing_run_does_not_end_the_sweep(tmp_path):
    run_fn, called = make_run_fn(small_0=ValueError("bad shape\nmore"), large_1=UsageError("no"))
    failed = sweep.run_all(tmp_path, RUNS, run_fn)
    assert len(called) == 4
    assert failed == {"small, seed 0": "ValueError: bad shape", "large, seed 1": "no"}
    with pytest.raises(SomeFailed, match="2 of 4 runs failed:\n  small, seed 0: ValueError"):
        sweep.finish(tmp_path, RUNS, failed)
    assert "ValueError: bad shape" in RUNS[0].log(tmp_path).read_text()
    run_fn, called = make_run_fn()
    sweep.finish(tmp_path, RUNS, sweep.run_all(tmp_path, RUNS, run_fn))
    assert called == ["small, seed 0", "large, seed 1"]
    assert not RUNS[0].log(tmp_path).exists()


def test_full_disk_ends_the_sweep(tmp_path):
    run_fn, called = make_run_fn(small_0=OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        sweep.run_all(tmp_path, RUNS, run_fn)
    assert len(called) == 1


def test_run_of_another_process_is_left_to_it(tmp_path):
    run_fn, called = make_run_fn()
    with sweep.claim(RUNS[1].folder(tmp_path)) as is_mine:
        assert is_mine and sweep.run_all(tmp_path, RUNS, run_fn) == {}
        assert sweep.count_elsewhere(tmp_path, RUNS) == 1 and sweep.leave_report(tmp_path, RUNS)
    assert len(called) == 3 and "large, seed 0" not in called
    assert not sweep.leave_report(tmp_path, RUNS)


def test_progress_estimates_the_time_left_by_cost(tmp_path):
    assert sweep.describe_progress(tmp_path, RUNS, RUNS[0]) == "run 1 of 4: small, seed 0"
    path = RUNS[0].result(tmp_path)
    path.parent.mkdir()
    path.write_text('{"seconds": 60, "cost": 1}')
    text = sweep.describe_progress(tmp_path, RUNS, RUNS[1])
    assert text == "run 2 of 4: large, seed 0; about 0:07:00 left"


def test_sweep_keeps_its_config_and_foreign_files(tmp_path):
    config = ConfigDict({"seed": 0, "width": 8})
    sweep.open_sweep(tmp_path, "networks", config, ("table.md",))
    (tmp_path / "table.md").write_text("ours")
    config.seed = 1
    sweep.open_sweep(tmp_path, "networks", config, ("table.md",))
    assert read_json(tmp_path / "sweep.json")["config"]["seed"] == 0
    config.width = 4
    with pytest.raises(UsageError, match=r"another config:\n  config.width: got 4, expected 8"):
        sweep.open_sweep(tmp_path, "networks", config, ())
    config.width = 8
    earlier = read_json(tmp_path / "sweep.json")
    del earlier["config"]["schema_version"]  # as sweeps were written at first
    write_json(tmp_path / "sweep.json", earlier)
    config.train = ConfigDict({"compiler_options": ()})  # a field that is new since then
    sweep.open_sweep(tmp_path, "networks", config, ())
    with pytest.raises(UsageError, match="kind: got ablation, expected networks"):
        sweep.open_sweep(tmp_path, "ablation", config, ())
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.md").write_text("the user's")
    with pytest.raises(UsageError, match=r"table.md: exists and is not results"):
        sweep.open_sweep(other, "networks", config, ("table.md",))
    assert (other / "table.md").read_text() == "the user's"
