"""The viewer with a real, small and untrained interactive model."""

import functools

import jax
import nibabel
import numpy as np
import pytest
from conftest import phantom_config, save_run
from viewer_server import Served, make_volume, write_volume

from usam_jax.models import init_variables
from usam_jax.predict import Predictor, output
from usam_jax.viewer import model as viewer_model
from usam_jax.viewer.case import Paths

pytestmark = pytest.mark.slow
CLICKS = [[20.5, 12, 2], [30, 30, 1], [5, 5, 0]]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of an untrained network whose extension is not zero, so that clicks matter."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"model.interactive": True, "prompts.kind": "interactive"}
    changes["model.deep_supervision"] = 0.3  # as the demo's
    config = phantom_config(**changes)
    variables = init_variables(config.model, jax.random.key(3))
    rng = np.random.default_rng(0)
    extension = variables["params"]["extension"]
    variables["params"]["extension"] = jax.tree.map(
        lambda x: x + rng.standard_normal(x.shape, np.float32), extension
    )
    save_run(folder, config, variables)
    return folder


def test_clicks_on_a_real_model_are_saved_as_predicted(workdir, tmp_path):
    hu, _ = make_volume((3, 40, 48))
    write_volume(tmp_path / "ct.nii.gz", hu, "RAS")
    described = viewer_model.describe_checkpoint(workdir)
    assert described.points_carry_class and described.classes[2] == "tumour"
    paths = Paths(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz")
    load_fn = functools.partial(viewer_model.load_predictor, workdir)
    with Served([paths], load_fn=load_fn, model=described) as served:
        served.wait(lambda x: x["model"] == "ready" and x["busy"] is None, 120)
        for count in (1, 2, 3):
            served.click(1, CLICKS[:count])
        served.post("save", {"format": "nifti"})
    source = output.read_source(paths.ct)
    predictor = Predictor.load(workdir)
    labels = np.zeros(source.hu.shape, np.uint8)
    for number, slice_hu in enumerate(source.hu):
        encoded = predictor.encode_slice(slice_hu, source.geometry.spacing_mm[1:])
        labels[number], previous = predictor.predict(encoded=encoded)
        for count in (1, 2, 3) if number == 1 else ():
            before = labels[1].copy()
            labels[1], previous = predictor.predict(
                [x[:2] for x in CLICKS[:count]],
                encoded=encoded,
                point_classes=[x[2] for x in CLICKS[:count]],
                previous=previous,
            )
            assert (labels[1] != before).any()
    output.write_mask(tmp_path / "expected.nii.gz", source, labels)
    found, expected = (
        np.asarray(nibabel.load(tmp_path / name).dataobj)
        for name in ("mask.nii.gz", "expected.nii.gz")
    )
    np.testing.assert_array_equal(found, expected)
