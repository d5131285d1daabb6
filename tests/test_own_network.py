"""A network in a file of the user's own, from the command line, and faults of such files."""

import json

import jax
import pytest
from conftest import ROOT, phantom_config
from test_end_to_end import command, read_metrics, run

from usam_jax import models
from usam_jax.evaluation import checks
from usam_jax.training import loop
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import make_mesh

TOY = ROOT / "tests" / "toy_network.py"
FIELDS = {
    "model.image_size": "32",
    "data.num_patients": "(3,2)",
    "data.slices_per_patient": "8",
    "data.val_fraction": "0.3",
    "train.num_epochs": "3",
    "train.log_every_steps": "1",
    "eval.batch_size": "8",
}


def test_own_network_trains_and_evaluates(tmp_path):
    workdir, fields = tmp_path / "run", {**FIELDS, "data.packed_dir": str(tmp_path / "packed")}
    done = run(command(f"--workdir={workdir}", config=f"configs/phantom.py:{TOY}", **fields))
    assert done.returncode == 0, done.stderr
    summary = json.loads((workdir / "eval/test_none/summary.json").read_text())
    assert (summary["prompts"], summary["automatic"]) == ("none (automatic)", True)
    assert summary["num_slices"] == 16
    assert "evaluating val" in done.stderr and "evaluating test" in done.stderr
    rows = [x for x in read_metrics(workdir) if "train/loss" in x]
    assert {"lr/body", "lr/heads", "grad_norm/body"} <= set(rows[0])
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["name"] == str(TOY)
    record = json.loads((workdir / "run.json").read_text())["starts"][-1]
    assert record["network"]["file"] == str(TOY)


def test_frozen_parameters_have_no_optimizer_state():
    config = phantom_config(str(TOY))
    training = loop.make_training(config, 10, make_mesh(1))
    assert "stem" in training.target.params
    paths = [
        jax.tree_util.keystr(x) for x, _ in jax.tree.leaves_with_path(training.target.opt_state)
    ]
    assert any("body" in x for x in paths) and not any("stem" in x for x in paths)


def test_own_network_file_faults_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.py, which is not a file"):
        models.get(str(tmp_path / "absent.py"))
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(UsageError, match=r"broken\.py: got ModuleNotFoundError when loading it"):
        models.get(str(tmp_path / "broken.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match=r"empty\.py: got no SPEC"):
        models.get(str(tmp_path / "empty.py"))


def test_network_without_prompts_rejects_prompts_kind():
    config = phantom_config(str(TOY), **{"prompts.kind": "box"})
    with pytest.raises(UsageError, match=r"config.prompts.kind: got 'box', expected none"):
        checks.check_all(config, make_mesh(1))
