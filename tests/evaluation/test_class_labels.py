"""The classes of volumes to be scored, from whatever `dataset.json` lies next to them."""

import json

import pytest

from usam_jax.evaluation.class_labels import find_classes
from usam_jax.utils.errors import UsageError

LABELS = {"background": 0, "tumour": 2, "rectum": 1}
NAMES = ("background", "rectum", "tumour")


@pytest.fixture
def folders(tmp_path):
    paths = tmp_path / "predictions", tmp_path / "data" / "labelsTs"
    for path in paths:
        path.mkdir(parents=True)
    return paths


def write(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "content",
    [
        {"labels": LABELS, "channel_names": {"0": "T2", "1": "DWI"}, "file_ending": ".nrrd"},
        {"labels": LABELS},
        {"labels": {"0": "background", "1": "rectum", "2": "tumour"}, "modality": {"0": "MRI"}},
    ],
)
def test_find_classes_reads_labels_of_any_modality(folders, content):
    write(folders[0], **content)
    assert find_classes(*folders) == NAMES
    write(folders[1].parent, labels=LABELS, channel_names={"0": "CT"}, file_ending=".nii.gz")
    assert find_classes(*folders) == NAMES


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "got the regions whole, expected one"),
        (LABELS | {"ignore": 3}, r"got an ignore label \(3\), expected none"),
        ({"background": 0, "tumour": 2}, "expected the numbers 0, 1, 2"),
        ({"background": 0, "tumour": "1"}, "expected the numbers 0, 1, 2"),
        ({"background": False, "tumour": True}, "expected the numbers 0, 1, 2"),
        ({"a": "b"}, "got no usable labels"),
        (["background", "tumour"], "got no usable labels"),
    ],
)
def test_find_classes_names_labels_without_a_class(folders, labels, problem):
    write(folders[1], labels=labels)
    with pytest.raises(UsageError, match=rf"dataset.json: .*{problem}.*give --classes="):
        find_classes(*folders)


def test_find_classes_names_files_that_disagree(folders):
    write(folders[0], labels=LABELS)
    write(folders[1], labels={"background": 0, "tumour": 1})
    with pytest.raises(UsageError, match="the files name different classes"):
        find_classes(*folders)
