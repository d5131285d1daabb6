"""WORD as distributed: CT volumes and labels of 16 abdominal organs in NIfTI."""

import pathlib

from ml_collections import ConfigDict

from usam_jax.data.case import Cases
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.volumes import others_of, volume_cases

ENDING = ".nii.gz"
HINT = "WORD is given out by its authors on request; configs/phantom.py needs no data."


def list_cases(data: ConfigDict) -> Cases:
    """The volumes of each split that has a folder of labels."""
    root = pathlib.Path(data.root)
    return {
        split: volume_cases(root, part, ENDING, ENDING, data)
        for split, part in parts_of(root).items()
    }


def parts_of(root: pathlib.Path) -> dict[str, str]:
    """The ends of the folders' names by split, for each split that has a folder of labels."""
    parts = {"train": "Tr", "val": "Val", "test": "Ts"}
    return {
        split: part
        for split, part in parts.items()
        if split == "train" or (root / f"labels{part}").is_dir()
    }


def find_left_out(data: ConfigDict) -> dict[pathlib.Path, str]:
    """What is not named NAME.nii.gz in the folders of the splits, and a split without labels."""
    root = pathlib.Path(data.root)
    left_out: dict[pathlib.Path, str] = {}
    for part in parts_of(root).values():
        left_out |= others_of(root, part, ENDING, ENDING)
    if (root / "imagesVal").is_dir() and not (root / "labelsVal").is_dir():
        left_out[root / "imagesVal"] = "has no labelsVal next to it"
    return left_out


SPEC = DatasetSpec(
    list_cases,
    find_left_out,
    layout="imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs",
    hint=HINT,
    config_name="word",
    required="imagesTr",
    sign="imagesVal",
    detect_rank=2,
    oriented=True,
)
