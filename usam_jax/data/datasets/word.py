"""WORD as distributed: CT volumes and labels of 16 abdominal organs in NIfTI."""

import pathlib

from ml_collections import ConfigDict

from usam_jax.data.case import Cases
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.volumes import volume_cases

HINT = "WORD is given out by its authors on request; configs/phantom.py needs no data."


def list_cases(data: ConfigDict) -> Cases:
    """The volumes of each split that has a folder of labels."""
    root = pathlib.Path(data.root)
    names = {"train": "Tr", "val": "Val", "test": "Ts"}
    return {
        split: volume_cases(root, end, ".nii.gz", ".nii.gz", data)
        for split, end in names.items()
        if split == "train" or (root / f"labels{end}").is_dir()
    }


SPEC = DatasetSpec(
    list_cases,
    layout="imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs",
    hint=HINT,
    config_name="word",
    required="imagesTr",
    sign="imagesVal",
    detect_rank=2,
    oriented=True,
)
