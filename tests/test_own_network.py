"""A network in a file of the user's own: training, exact resume, prediction and export."""

import json
import sys
import textwrap

import jax
import nibabel
import numpy as np
import pytest
from conftest import phantom_config
from test_end_to_end import command, read_metrics, run, start, wait_for

from usam_jax import models
from usam_jax.data.phantoms.anatomy import make_patient
from usam_jax.training import loop
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import make_mesh

# Everything that a SPEC can ask for: frozen parameters, two groups, dropout and a second output.
NETWORK = '''
"""A toy network."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec, multiple_of


class Toy(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, images, prompts=None, train=False):
        x = SPEC.input.normalize(images, jnp.float32)
        x = nn.relu(nn.Conv(self.width, (3, 3), name="stem")(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="body")(x))
        x = nn.BatchNorm(momentum=0.9, use_running_average=not train, name="norm")(x)
        half = nn.Conv(self.num_classes, (1, 1), name="side")(x[:, ::2, ::2])
        self.sow("aux_logits", "half", half)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Conv(self.num_classes, (1, 1), name="head")(x)


def toy_config():
    config = ConfigDict()
    config.width = 8  # channels
    return config


SPEC = ModelSpec(
    config=toy_config,
    build=lambda config: Toy(config.num_classes, config.width),
    param_groups=(("stem/.*", None), ("(body|norm)/.*", "body"), (".*", "heads")),
    loss_weights={"logits": 1.0, "half": 0.5},
    image_size=multiple_of(4),
    stochastic=True,
)
'''
FIELDS = {
    "model.image_size": "32",
    "data.num_patients": "(3,2)",
    "data.slices_per_patient": "8",
    "data.val_fraction": "0.3",
    "train.num_epochs": "3",
    "train.log_every_steps": "1",
    "eval.batch_size": "8",
}


@pytest.fixture(scope="session")
def network(made_once):
    folder = made_once("network", lambda x: (x / "toy.py").write_text(textwrap.dedent(NETWORK)))
    return folder / "toy.py"


def train_command(network, folder, workdir, **fields: str) -> list[str]:
    fields = {**FIELDS, "data.packed_dir": str(folder / "packed"), **fields}
    return command(f"--workdir={workdir}", config=f"configs/phantom.py:{network}", **fields)


@pytest.fixture(scope="session")
def trained(network, made_once):
    """The folder of a finished run and of its packed data, and what the run printed."""

    def train(folder):
        done = run(train_command(network, folder, folder / "run"))
        assert done.returncode == 0, done.stderr
        (folder / "printed.txt").write_text(done.stderr)

    folder = made_once("own", train)
    return folder, (folder / "printed.txt").read_text()


def test_own_network_trains_and_evaluates(trained, network):
    folder, printed = trained
    summary = json.loads((folder / "run/eval/test_none/summary.json").read_text())
    assert (summary["prompts"], summary["automatic"]) == ("none (automatic)", True)
    assert summary["num_slices"] == 16
    assert "evaluating val" in printed and "evaluating test" in printed
    rows = [x for x in read_metrics(folder / "run") if "train/loss" in x]
    assert {"lr/body", "lr/heads", "grad_norm/body"} <= set(rows[0])
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    config = json.loads((folder / "run/config.json").read_text())
    assert config["model"]["name"] == str(network)
    record = json.loads((folder / "run/run.json").read_text())["starts"][-1]
    assert record["network"]["file"] == str(network)


def test_own_network_resumes_exactly(trained, network):
    folder, _ = trained
    workdir = folder / "killed"
    arguments = train_command(network, folder, workdir)
    process = start(arguments)
    wait_for(process, lambda: any(x.name.isdigit() for x in workdir.glob("checkpoints/*")))
    process.kill()
    process.communicate()
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stderr
    # Equal despite dropout, which is drawn from seed and step.
    assert read_metrics(workdir) == read_metrics(folder / "run")


def test_own_network_predicts_and_exports(trained):
    folder, _ = trained
    ct = folder / "ct.nii.gz"
    hu = make_patient(0, 0, 40, 6).image.astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1.0, -1.0, 3.0, 1.0])), ct)
    program = [sys.executable, "-m", "usam_jax.predict", f"--checkpoint={folder / 'run'}"]
    program += ["-i", str(ct), "-o", str(folder / "mask.nii.gz")]
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert nibabel.load(folder / "mask.nii.gz").shape == (40, 40, 6)
    refused = run([*program, "--box=1,1,1,5,5,2"])
    assert refused.returncode == 2
    assert "the network toy takes no prompts" in refused.stderr

    done = run([sys.executable, "-m", "tools.export", str(folder / "run"), str(folder / "out")])
    assert done.returncode == 0, done.stderr
    described = json.loads((folder / "out/config.json").read_text())
    assert list(described["inputs"]) == ["images"]
    exported = jax.export.deserialize(bytearray((folder / "out/model.jax_export").read_bytes()))
    labels, probabilities = exported.call(np.zeros((2, 32, 32), np.uint8))
    assert labels.shape == (2, 32, 32) and probabilities.shape == (2, 32, 32, 3)
    card = (folder / "out/README.md").read_text()
    assert "prompts_given" not in card


def test_frozen_parameters_have_no_optimizer_state(network):
    config = phantom_config(str(network))
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


def test_network_without_prompts_rejects_prompts_kind(network):
    done = run(
        command("--workdir=x", config=f"configs/phantom.py:{network}", **{"prompts.kind": "box"})
    )
    assert done.returncode == 2
    assert "config.prompts.kind: got 'box', expected none" in done.stderr
