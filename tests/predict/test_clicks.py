"""Clicks that name a class, on their way from a user to an interactive network."""

import json
import types

import numpy as np
import pytest
from conftest import make_variables, phantom_config, save_run

from usam_jax.data.preprocessing import Preparation
from usam_jax.io.geometry import make_geometry
from usam_jax.predict import Predictor
from usam_jax.predict.clicks import read_clicks
from usam_jax.predict.model import Clicks, pad_interactive
from usam_jax.predict.predictor import place_clicks
from usam_jax.predict.slices import encode_one
from usam_jax.predict.volume import predict_before_last
from usam_jax.utils.errors import UsageError

CLASSES = ("background", "normal rectum", "tumour")
PIXEL_MM = (0.8, 0.8)


def place(points, classes, shape=(512, 400), size=224, transposed=False):
    """The clicks of a slice on the pixels of a network's input."""
    numbers = np.array(classes, np.int32)
    clicks = Clicks(np.array(points, np.float32), (numbers > 0).astype(np.int32), None, numbers)
    preparation = Preparation(size, 40.0, 400.0, "clip", 0.0, transposed)
    network = types.SimpleNamespace(preparation=preparation)
    return place_clicks(clicks, network, shape, PIXEL_MM), preparation


@pytest.mark.parametrize("transposed", [False, True], ids=["upright", "transposed"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((512, 400), 224), ((400, 400), 224), ((500, 500), 224), ((122, 101), 112), ((100, 90), 224)],
)
def test_label_at_a_placed_click_comes_back_on_its_voxel(shape, size, transposed):
    h, w = shape
    rng = np.random.default_rng(0)
    inside = rng.uniform(-0.5, (w - 0.5, h - 0.5), (200, 2))
    edges = [(-0.5, -0.5), (w - 0.5, h - 0.5), (w - 1, 0)]
    for x, y in [*inside, *inside.round(), *edges]:
        placed, preparation = place([[x, y]], [1], shape, size, transposed)
        labels = np.zeros((size, size), np.uint8)
        column, row = placed.points_xy[0].astype(int)
        assert (column, row) == tuple(placed.points_xy[0])
        labels[row, column] = 1
        voxel = min(int(np.floor(y + 0.5)), h - 1), min(int(np.floor(x + 0.5)), w - 1)
        assert preparation.labels_back(labels, shape, PIXEL_MM)[voxel] == 1


def test_later_of_two_clicks_on_one_pixel_counts():
    placed, _ = place([[101, 9], [102, 9], [107, 9]], [1, 2, 0])
    assert placed.point_classes.tolist() == [2, 0] and placed.point_labels.tolist() == [1, 0]
    same, _ = place([[101, 9], [107, 9], [101, 9]], [1, 0, 2])
    assert same.point_classes.tolist() == [0, 2]


@pytest.fixture
def read(tmp_path):
    """A function that reads a points file on an 8x8x4 volume."""
    geometry = make_geometry((8, 8, 4), np.diag([-1.0, -1.0, 1.0, 1.0]))

    def read_points(*points, classes=CLASSES):
        path = tmp_path / "points.json"
        path.write_text(json.dumps({"space": "voxel", "points": list(points)}))
        return read_clicks(path, geometry, classes)

    return read_points


def test_points_file_names_classes(read):
    found = read(
        {"at": [1, 2, 3], "class": "tumour"},
        {"at": [4, 5, 3], "class": "background"},
        {"at": [4, 6, 3], "label": 0},
        {"at": [4, 5, 1], "class": "normal rectum", "label": 1},
    )
    assert found[3].point_classes.tolist() == [2, 0, 0]
    assert found[3].point_labels.tolist() == [1, 0, 0]
    assert found[1].point_classes.tolist() == [1]


@pytest.mark.parametrize(
    ("point", "classes", "message"),
    [
        ({"class": "bladder"}, CLASSES, "got the class 'bladder', expected \"class\" with one of"),
        ({}, CLASSES, "got the class None"),
        ({"class": "tumour", "label": 0}, CLASSES, "got the class 'tumour' and label 0"),
        ({"class": "background", "label": 1}, CLASSES, "expected label 1 for a class"),
        ({"class": "tumour"}, (), "without the interactive extension. Train usam or sam_s with"),
        ({"class": "tumour", "at": [9, 2, 3]}, CLASSES, "outside the volume"),
    ],
)
def test_points_file_with_a_wrong_class_is_refused(read, point, classes, message):
    with pytest.raises(UsageError, match=message):
        read({"at": [1, 2, 3]} | point, classes=classes)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """An interactive network with any weights, and a slice of 40x60 pixels."""
    config = phantom_config(**{"model.interactive": True, "prompts.kind": "interactive"})
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, config, make_variables(config.model))
    made = Predictor.load(workdir)
    made.set_image(np.zeros((40, 60)))
    return made


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected the class of each point"),
        ({"point_classes": [3]}, "expected for each of 1 points one of 0 \\(background\\), 1"),
        ({"point_classes": [1, 2]}, "got \\[1, 2\\], expected for each of 1 points"),
        ({"point_classes": [1], "point_labels": [1]}, "expected point_classes alone"),
        ({"point_classes": [1], "previous": np.zeros((4, 4, 3))}, "previous: got the shape"),
        ({"point_classes": [1], "previous": "last"}, "previous: got 'last'"),
        ({"point_classes": [1], "previous": np.full((40, 60, 3), 5)}, "got values from 5 to 5"),
        ({"point_classes": [1], "previous": np.full((40, 60, 3), np.nan)}, "values from nan"),
        ({"point_classes": [[1], [2, 3]]}, "expected for each of 1 points"),
    ],
)
def test_predictor_refuses_wrong_clicks(predictor, fields, message):
    with pytest.raises(UsageError, match=message):
        predictor.predict([[5, 5]], **fields)


def test_predictor_takes_the_later_of_two_clicks(predictor):
    _, first = predictor.predict([[5, 5]], point_classes=[2])
    _, both = predictor.predict([[5, 5], [5, 5]], point_classes=[1, 2])
    np.testing.assert_array_equal(both, first)
    _, other = predictor.predict([[5, 5], [5, 5]], point_classes=[2, 1])
    assert np.abs(other - first).max() > 1e-4


def test_predict_names_clicks_that_later_ones_replace(predictor, capsys):
    source = types.SimpleNamespace(
        hu=np.zeros((3, 40, 60)), geometry=make_geometry((60, 40, 3), np.diag([-1, -1, 4.0, 1]))
    )
    points = np.array([[5, 5], [30, 9], [5.3, 4.8]], np.float32)
    clicks = Clicks(points, np.ones(3, np.int32), None, np.array([1, 2, 2], np.int32))
    found = predict_before_last({2: clicks}, source, predictor.network)
    assert found[2].previous.shape == (40, 60, 3)
    assert "slice 2: point 1 of its 3 is replaced by a later" in capsys.readouterr().err


def test_more_clicks_than_slots_double_them():
    many = Clicks(np.zeros((33, 2), np.float32), np.ones(33, np.int32), None, np.full(33, 2))
    arrays = pad_interactive([many], (8, 8, 3))
    assert arrays["points_xy"].shape == (1, 64, 2)
    assert arrays["point_classes"].sum() == 66 and arrays["prompts_given"].sum() == 33


def test_slice_is_encoded_with_its_neighbours():
    network = types.SimpleNamespace(
        slices=3,
        preparation=Preparation(32, 0.0, 2.0, "clip", 0.0, False),
        encode=lambda images: images,
    )
    hu = np.linspace(-1, 1, 4)[:, None, None] * np.ones((4, 32, 32))
    grey = [network.preparation.from_hu(x, (1.0, 1.0))[0, 0] for x in hu]
    image = encode_one(network, hu, 3, (1.0, 1.0)).features
    assert image.shape == (1, 32, 32, 3)
    assert image[0, 0, 0].tolist() == [grey[2], grey[3], grey[3]]
