"""Networks of windows and neighbours as channels: training, resume, evaluation, prediction."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, phantom_config
from test_end_to_end import read_metrics

from usam_jax import convert, models
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.phantoms import anatomy
from usam_jax.data.prompt_modes import main_mode
from usam_jax.data.splits import Subset
from usam_jax.evaluation import evaluate
from usam_jax.evaluation.inference import make_forward
from usam_jax.evaluation.sweep import train_and_evaluate
from usam_jax.export import artifact
from usam_jax.models.common.flop import forward_flop
from usam_jax.predict.model import load_network
from usam_jax.predict.predictor import Predictor
from usam_jax.predict.slices import Options, predict_slices
from usam_jax.training import loop, losses
from usam_jax.utils import runtime
from usam_jax.utils.errors import Stopped, UsageError, WeightsError
from usam_jax.utils.mesh import make_mesh
from usam_jax.weights import load

NETWORK = '''
"""A toy network of windows."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec, multiple_of


class Toy(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, prompts=None, train=False):
        x = SPEC.input.normalize(images, jnp.float32, dims=3)
        x = nn.relu(nn.Conv(4, (3, 3, 3), name="stem")(x))
        self.sow("aux_logits", "half", nn.Conv(self.num_classes, (1, 1, 1))(x[:, ::2, ::2, ::2]))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Conv(self.num_classes, (1, 1, 1), name="head")(x)


def toy_config():
    config = ConfigDict()
    config.slices = 4
    return config


SPEC = ModelSpec(
    config=toy_config,
    build=lambda config: Toy(config.num_classes),
    loss_weights={"logits": 1.0, "half": 0.5},
    slices=multiple_of(2),
    stochastic=True,
    dims=3,
)
'''
NUM_SLICES = 7  # of a case: two windows of 4 that share a slice, or one of 8 with padding


@pytest.fixture(scope="module")
def make_config(tmp_path_factory):
    """A function that makes the config of the toy for phantoms of NUM_SLICES slices."""
    folder = tmp_path_factory.mktemp("windows")
    path = folder / "toy3d.py"
    path.write_text(textwrap.dedent(NETWORK))

    def make(network: str = str(path), **fields):
        config = phantom_config(network, **{"data.packed_dir": str(folder), **fields})
        config.data.slices_per_patient = NUM_SLICES
        config.train.batch_size, config.eval.batch_size = 2, 2
        return config

    return make


@pytest.fixture
def one_device(monkeypatch):
    """Runs on one device: batches of two windows do not divide over eight."""
    single = functools.partial(make_mesh, 1)
    for module in ("training.loop", "evaluation.evaluate", "evaluation.sweep"):
        monkeypatch.setattr(f"usam_jax.{module}.make_mesh", single)


def test_network_of_windows_trains_resumes_and_predicts(
    make_config, one_device, tmp_path, monkeypatch
):
    config = make_config()
    summary = train_and_evaluate(config, tmp_path / "run")
    assert summary["num_slices"] == 2 * NUM_SLICES and summary["num_cases"] == 2
    pixels = sum(sum(x["pixels"]["1"][i] for i in (0, 2)) for x in summary["metric_per_case"])
    packed = prepare(config.data)
    assert pixels == (packed.labels("test") == 1).sum()

    after = runtime.StopSignal.after
    monkeypatch.setattr(
        runtime.StopSignal, "after", lambda _, step: "SIGTERM" if step == 2 else None
    )
    with pytest.raises(Stopped, match="stopped after step 2"):
        loop.train(config, tmp_path / "stopped", evaluate.make_evaluate_fn)
    monkeypatch.setattr(runtime.StopSignal, "after", after)
    loop.train(config, tmp_path / "stopped", evaluate.make_evaluate_fn)
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "run")

    # Prediction of a volume gives the evaluation's slices, each once.
    network = load_network(tmp_path / "run")
    patient = anatomy.make_patient(1, 3, 32, NUM_SLICES)
    geometry = anatomy.patient_geometry(1, 3, 32, NUM_SLICES, "single")
    predict = functools.partial(predict_slices, network, patient.image, geometry, {})
    found = list(predict(Options(batch_size=3), with_probabilities=True))
    assert [x.number for x in found] == list(range(NUM_SLICES))
    images = packed.images("test")[:NUM_SLICES]
    windows = np.stack([images[:4], images[3:]]).astype(np.float32) / 255
    logits = jax.jit(network.model.apply)(network.variables, windows)
    expected = np.concatenate([logits[0], logits[1, 1:]])
    probabilities = np.stack([x.probabilities for x in found])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(expected), rtol=0, atol=1e-4)
    flipped = list(predict(Options(batch_size=8, flip=True, first=2, last=5)))
    assert [x.number for x in flipped] == [2, 3, 4, 5]
    with pytest.raises(UsageError, match=r"config.model.slices: got 4, expected 1: this network n"):
        Predictor.load(tmp_path / "run")
    with pytest.raises(UsageError, match=r"config.model.slices: got 4, expected 1: an exported"):
        artifact.export_run(tmp_path / "run", tmp_path / "out", torch=False)


def test_case_shorter_than_the_window_counts_its_slices_once(make_config, one_device, tmp_path):
    config = make_config()
    config.model.slices = 8
    packed = prepare(config.data)
    with pytest.raises(UsageError, match=r"config.model.slices: got 8, expected at most 7, the sl"):
        loop.train(config, tmp_path, evaluate.make_evaluate_fn)
    model, mesh = models.make_model(config.model), make_mesh(1)
    variables = models.init_variables(config.model, jax.random.key(0))
    subset = Subset("test", np.arange(2 * NUM_SLICES))
    done = evaluate.predict_subset(
        evaluate.Model(make_forward(model, mesh), variables, mesh),
        packed,
        subset,
        config,
        [main_mode(config)],
    )
    counts = done.counts["none"]
    assert counts.shape == (2 * NUM_SLICES, 3, 3)
    truth = np.stack([(packed.labels("test") == c).sum((1, 2)) for c in range(3)], axis=-1)
    np.testing.assert_array_equal(counts[..., [0, 2]].sum(-1), truth)


def test_loss_ignores_slices_that_fill_a_window():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 4, 5, 5, 3)), jnp.float32)
    labels = rng.integers(0, 3, (2, 4, 5, 5)).astype(np.int32)
    labels[:, 3:] = 255
    for dice in losses.DICE:
        loss = functools.partial(losses.segmentation_loss, dice=dice)
        found, terms = loss(logits, jnp.asarray(labels), ignored=255)
        expected, wanted = loss(logits[:, :3], jnp.asarray(labels[:, :3]))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(terms["ce"], wanted["ce"], rtol=1e-6)


def test_neighbours_are_channels_of_a_network_of_slices(make_config, one_device, tmp_path):
    config = make_config(str(ROOT / "tests" / "toy_network.py"))
    config.model.slices = 3
    summary = train_and_evaluate(config, tmp_path / "run")
    assert summary["num_slices"] == 2 * NUM_SLICES
    network = load_network(tmp_path / "run")
    patient = anatomy.make_patient(1, 3, 32, NUM_SLICES)
    geometry = anatomy.patient_geometry(1, 3, 32, NUM_SLICES, "single")
    found = list(predict_slices(network, patient.image, geometry, {}, Options(3, flip=True)))
    assert [x.number for x in found] == list(range(NUM_SLICES))
    images = prepare(config.data).images("test")[:NUM_SLICES].astype(np.float32) / 255
    around = np.stack([images[[0, 0, 1, 2, 3, 4, 5]], images, images[[1, 2, 3, 4, 5, 6, 6]]], -1)
    apply = jax.jit(network.model.apply)
    both = [jax.nn.softmax(apply(network.variables, x)) for x in (around, around[:, :, ::-1])]
    expected = (both[0] + both[1][:, :, ::-1]).argmax(-1)
    assert np.mean(np.stack([x.labels for x in found]) == expected) > 0.999


def zero_variables(config):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), models.variable_shapes(config))


def test_published_weights_fit_one_slice_or_their_channels():
    config = models.make_config("unet")  # with a first layer for three channels
    config.width = 4
    state_dict = load.to_published(zero_variables(config), config)
    config.slices = 3
    convert.from_published(state_dict, config)
    config.slices = 5
    with pytest.raises(
        WeightsError, match=r"config.model.slices: got 5, expected 1 or 3: .* takes 3 channels"
    ):
        convert.from_published(state_dict, config)
    config = models.make_config("nnunet")
    config.update(models.get("nnunet").small)
    state_dict = load.to_published(zero_variables(config), config)
    config.slices = 3
    with pytest.raises(WeightsError, match=r"slices: got 3, expected 1: .* takes 1 channel\."):
        convert.from_published(state_dict, config)


def test_slices_that_a_network_does_not_take_are_named(make_config):
    config = make_config("unet")
    config.model.slices = 4
    with pytest.raises(UsageError, match=r"config.model.slices: got 4, expected an odd number"):
        models.make_model(config.model)
    config = make_config()
    config.model.slices = 3
    with pytest.raises(UsageError, match=r"config.model.slices: got 3, expected a positive mul"):
        models.make_model(config.model)


def test_flop_of_windows_is_that_of_a_slice(make_config):
    config = make_config().model
    voxels = 32 * 32
    per_voxel = 2 * (27 * 4 + 4 * 3 + 4 * 3 / 8)
    assert forward_flop(config) == pytest.approx(voxels * per_voxel)
    config.slices = 8
    assert forward_flop(config) == pytest.approx(voxels * per_voxel)
