"""Grey values that cannot be those of a windowed CT: warned about by name, or refused."""

import functools

import numpy as np
import pytest
from conftest import write_care

from usam_jax.data import validation, values
from usam_jax.data.datasets.phantom import load_phantom
from usam_jax.data.packed import prepare
from usam_jax.utils.errors import DataError

SCALES = {
    "-1..1": lambda x: 2 * x - 1,
    "0..255": lambda x: 255 * x,
    "HU": lambda x: 400 * x - 160,
    "z-scores": lambda x: (x - x.mean()) / x.std(),
    "constant": lambda x: 0 * x + 0.5,
}


@functools.cache
def phantom() -> np.ndarray:
    return load_phantom(0, 7, 64, 3)[0]


@pytest.fixture
def care(tmp_path, care_config):
    """Slices in CARE's layout that are small to pack, and the function that rescales some."""
    root = tmp_path / "CARE"
    write_care(root, num_train=4, num_test=2)
    config = care_config(root, tmp_path / "packed")
    config.model.image_size = 32

    def rescale(scale_fn, names, split="train"):
        for name in names:
            path = root / split / f"{split}_npz" / f"{name}.npz"
            with np.load(path) as file:
                image, label = scale_fn(file["image"]), file["label"]
            np.savez(path, image=image, label=label)

    return config.data, rescale


@pytest.mark.parametrize("scale", SCALES)
def test_values_of_another_scale_are_unusable(scale):
    found = values.measure(SCALES[scale](phantom()))
    assert values.is_unusable(found)
    assert "expected 0 (air) to about 1" in values.doubt(found, is_volume=False)


@pytest.mark.parametrize("change_fn", [lambda x: x, lambda x: 1.15 * x])
def test_values_of_windowed_ct_are_usable(change_fn):
    found = values.measure(change_fn(phantom()))
    assert not values.is_unusable(found) and values.doubt(found, is_volume=True) == ""


def test_measure_counts_pixels_and_levels():
    grey = np.array([[[-1.0, -0.001, 0.0, 0.5], [0.5, 0.9999, 1.0, 3.0]]])
    assert values.measure(grey) == values.GreyValues(-1.0, 3.0, 3 / 8, 3 / 8, 4)


def test_real_slices_of_care_are_usable(care_samples):
    for path in care_samples.rglob("*.npz"):
        with np.load(path) as file:
            image = file["image"]
        assert values.doubt(values.measure(image[None]), is_volume=False) == ""
        for scale_fn in SCALES.values():
            assert values.is_unusable(values.measure(scale_fn(image)[None]))


def test_prepare_warns_of_one_slice_by_name_each_time(care, capsys):
    data, rescale = care
    rescale(SCALES["-1..1"], ["2"])
    for _ in range(2):
        prepare.prepare(data)
        text = capsys.readouterr().err
        assert "the grey values of 1 cases look wrong" in text
        assert "train/2: grey values from -1 to" in text and "train/1:" not in text
    findings, _ = validation.check(data)
    assert [(x.severity, x.kind, x.where) for x in findings] == [
        ("warning", "intensity", "train/2")
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_prepare_refuses_a_split_of_another_scale(care, split):
    data, rescale = care
    rescale(SCALES["-1..1"], ["1", "2"] + ["3", "4"] * (split == "train"), split)
    for _ in range(2):  # a second start does not use what the first has packed
        with pytest.raises(DataError, match=rf"{split}: the grey values .*\n  {split}/1: grey"):
            prepare.prepare(data)
    findings, _ = validation.check(data)
    error, *warnings = findings
    assert (error.severity, error.kind, error.where) == ("error", "intensity", data.root)
    assert {x.where.split("/")[0] for x in warnings} == {split}
    rescale(lambda x: (x + 1) / 2, ["1", "2"] + ["3", "4"] * (split == "train"), split)
    assert len(prepare.prepare(data).cases(split)) == len(warnings)


def test_packed_set_is_not_refused_for_its_contrast(care, tmp_path):
    data, _ = care
    packed = prepare.prepare(data)
    data.kind, data.root = "packed", str(packed.folder)
    assert validation.check(data)[0] == []
