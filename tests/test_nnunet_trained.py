"""A trained nnU-Net evaluates and predicts here."""

import jax
import jax.numpy as jnp
import nnunet_files
import numpy as np
import pytest
from conftest import model_config, phantom_config, set_fields
from safetensors.numpy import save_file

from tools import import_weights
from usam_jax import convert, models
from usam_jax.evaluation import evaluate
from usam_jax.predict.predictor import Predictor
from usam_jax.utils import config_file
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.weights import load, name_map
from usam_jax.weights.maps import sam_s


@pytest.fixture
def trained(tmp_path):
    """Folder, tensors and the network's config of a small nnU-Net with random weights."""
    config = model_config(name="nnunet", **nnunet_files.FIELDS)
    rng = np.random.default_rng(0)
    shapes = models.variable_shapes(config)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
    tensors = load.to_published(variables, config)
    nnunet_files.write_model(tmp_path / "model", tensors)
    return tmp_path / "model", tensors, config


def parse(folder, monkeypatch, **changes):
    monkeypatch.setattr("sys.argv", ["main"])
    config = config_file.ConfigFileParser().parse(f"nnunet_trained:{folder}")
    set_fields(config, changes)
    return config


def test_trained_nnunet_evaluates_and_predicts(trained, nnunet, tmp_path, monkeypatch, capfd):
    folder, tensors, plain = trained
    fields = {"data.root": str(nnunet[0]), "data.packed_dir": str(tmp_path / "packed")}
    classes = nnunet[1].data.classes
    nnunet_files.write_model(
        folder, tensors, dataset={"labels": {name: i for i, name in enumerate(classes)}}
    )
    config = parse(folder, monkeypatch, **fields, **{"eval.batch_size": 8})
    assert "fitted whole into 32x32" in "".join(capfd.readouterr())
    workdir = tmp_path / "run"
    import_weights.main(config, [str(workdir)])
    summary = evaluate.evaluate_workdir(config, workdir)
    assert (summary["checkpoint_step"], summary["num_slices"]) == (0, 12)
    assert (workdir / "eval/test_none/report.html").is_file()

    # nnU-Net's normalisation of HU, then the network alone.
    hu = np.linspace(-500, 500, 32 * 32, dtype=np.float32).reshape(32, 32)
    predictor = Predictor.load(workdir)
    predictor.set_image(np.clip((hu + 160) / 400, 0, 1))
    labels, probabilities = predictor.predict()
    normal = (np.clip(hu, -160, 240) - 60) / 40
    plain.update({"grey_mean": 0.0, "grey_std": 1.0})
    variables = convert.from_published(tensors, plain)
    logits = jax.jit(models.make_model(plain).apply)(variables, jnp.asarray(normal)[None])[0]
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=0, atol=0.05)
    assert (labels == logits.argmax(-1)).mean() > 0.98
    with pytest.raises(UsageError, match="run holds a run already"):
        import_weights.main(config, [str(workdir)])


def test_import_refuses_weights_that_are_not_whole(tmp_path):
    config = phantom_config("sam_s")
    shapes = models.variable_shapes(config.model)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    config.init_from = str(tmp_path / "sam.safetensors")
    save_file(name_map.to_torch(variables, sam_s.SAM, config.model), config.init_from)
    with pytest.raises(
        WeightsError, match=r"(?s)sam.safetensors has no weights for 13 .*only start a training"
    ):
        import_weights.main(config, [str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"arguments: got \[\], expected WORKDIR"):
        import_weights.main(config, [])


def test_nnunet_trained_config_needs_a_folder(monkeypatch):
    with pytest.raises(UsageError, match="got no folder, expected :FOLDER after it"):
        config_file.ConfigFileParser().parse("nnunet_trained")
