"""Each network, small: training, exact resume, evaluation, a predicted volume and export."""

import json
import pathlib
import shutil

import jax
import nibabel
import numpy as np
import pytest
from conftest import ROOT, each_network, phantom_config, without_shape_checks
from test_end_to_end import read_metrics

from usam_jax import models
from usam_jax.data.phantoms.anatomy import make_patient
from usam_jax.evaluation import evaluate
from usam_jax.export.artifact import export_run
from usam_jax.models.common import registry
from usam_jax.predict.model import NO_CLICKS, load_network
from usam_jax.predict.slices import Options
from usam_jax.predict.volume import Request, predict_volume
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh

TOY = str(ROOT / "tests" / "toy_network.py")  # a network of the user's own
# test_networks_of_windows.py trains networks of volumes.
NETWORKS = [*(x for x in registry.names() if models.get(x).dims == 2), TOY]
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with the packed phantoms of all networks and a CT."""
    folder = tmp_path_factory.mktemp("networks")
    hu = make_patient(0, 0, 40, 2).image.astype(np.int16)
    ct = nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1.0, -1.0, 3.0, 1.0]))
    nibabel.save(ct, folder / "ct.nii.gz")
    return folder


def remember(function):
    """The function's first result, for the same arguments again."""
    results = []

    def call(*arguments):
        if not results:
            results.append(function(*arguments))
        return results[0]

    return call


@pytest.fixture
def frugal(monkeypatch):
    """One device, one quick compilation of step and forward pass, and no plots."""
    for module in (loop, evaluate):
        monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(1))
    monkeypatch.setattr(loop, "make_training", remember(loop.make_training))
    monkeypatch.setattr(evaluate, "make_forward", remember(evaluate.make_forward))
    monkeypatch.setattr(loop.curves, "save_progress", lambda *_: None)
    monkeypatch.setattr(evaluate, "draw_report", lambda *_: None)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def make_config(name: str, folder: pathlib.Path):
    """The config of a network with one batch per epoch, the same slices in each."""
    return phantom_config(
        name,
        **{
            "data.packed_dir": str(folder / "packed"),
            "data.num_patients": (2, 1),
            "data.augment": False,
            "optimizer.warmup": True,
            "train.num_epochs": STEPS,
            "eval.every_epochs": STEPS - 1,
            "eval.prompts": (),
            "eval.prompt_jitter_px": (),
            "eval.max_clicks": 0,
        },
    )


def train(config, workdir: pathlib.Path):
    """The metrics of a run that trains to its last step."""
    loop.train(config, workdir, evaluate.make_evaluate_fn)
    return read_metrics(workdir)


@pytest.mark.parametrize("name", each_network(NETWORKS, (TOY, "unet")), ids=registry.short_name)
def test_network_trains_resumes_evaluates_predicts_exports(name, folder, tmp_path, frugal):
    config, workdir = make_config(name, folder), tmp_path / "run"
    metrics = train(config, workdir)
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert len(losses) == STEPS and losses[-1] < losses[0]

    # As if the process had been killed before the last checkpoint.
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    assert train(config, workdir) == metrics

    summary = evaluate.evaluate_workdir(config, workdir)
    assert summary["num_slices"] == 8

    network, mask = load_network(workdir), tmp_path / "mask.nii.gz"
    predict_volume(network, folder / "ct.nii.gz", mask, Request(Options()))
    assert nibabel.load(mask).shape == (40, 40, 2)

    with without_shape_checks():
        export_run(workdir, tmp_path / "out", torch=False)
    assert_same_probabilities(network, tmp_path / "out")


def assert_same_probabilities(network, folder: pathlib.Path) -> None:
    """Assert that an exported program and the network agree without prompts."""
    size = network.config["model"]["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (2, size, size), np.uint8)
    expected = network.decode(network.encode(images), [NO_CLICKS] * 2)[1]
    names = json.loads((folder / "config.json").read_text())["inputs"]
    inputs = {"images": images}
    if network.promptable:
        inputs |= network.pad([NO_CLICKS] * 2)
    assert inputs.keys() == names.keys()
    exported = jax.export.deserialize(bytearray((folder / "model.jax_export").read_bytes()))
    options = {"xla_backend_optimization_level": 0}
    call = jax.jit(exported.call, compiler_options=options)
    labels, probabilities = call(*(inputs[name] for name in names))
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(labels, np.argmax(probabilities, -1))
