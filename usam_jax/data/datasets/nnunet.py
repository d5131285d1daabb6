"""A raw data set of nnU-Net: CT volumes in NIfTI, described by a `dataset.json`."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from usam_jax.data.case import Cases, natural_order, unusable_case
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.volumes import others_of, volume_case, volume_cases
from usam_jax.io import dataset_json
from usam_jax.io.dataset_json import CHANNEL
from usam_jax.utils.errors import DataError, UsageError


def list_cases(data: ConfigDict) -> Cases:
    """The volumes of train and, if there is a folder labelsTs, of test.

    The training files are those that `dataset.json` lists under `dataset`, if it lists any. Raises
    UsageError if the classes of the config are not those of `dataset.json`.
    """
    root = pathlib.Path(data.root)
    path = root / dataset_json.NAME
    description = dataset_json.read_description(path)
    classes, ending = dataset_json.class_names(description), description["file_ending"]
    if classes != tuple(data.classes):
        raise UsageError(
            f"config.data.classes: got {tuple(data.classes)}, but {path} says {classes}; use "
            "--config=configs/nnunet.py, which reads them from there"
        )
    if listed := dataset_json.listed_files(description, path):
        train = [volume_case(x, *listed[x], data) for x in sorted(listed, key=natural_order)]
    else:
        train = volume_cases(root, "Tr", f"{CHANNEL}{ending}", ending, data)
    cases = {"train": train}
    if (root / "labelsTs").is_dir():
        cases["test"] = volume_cases(root, "Ts", f"{CHANNEL}{ending}", ending, data)
    if wrong := count_fault(path, description.get("numTraining", len(train)), len(train)):
        train.append(unusable_case(path.name, wrong))
    return cases


def find_left_out(data: ConfigDict) -> dict[pathlib.Path, str]:
    """What has no name of an image or label in the folders of the splits.

    If `dataset.json` lists the training files, those that it does not list are left out on purpose.
    """
    root = pathlib.Path(data.root)
    path = root / dataset_json.NAME
    description = dataset_json.read_description(path)
    parts = [] if dataset_json.listed_files(description, path) else ["Tr"]
    parts += ["Ts"] if (root / "labelsTs").is_dir() else []
    ending = description["file_ending"]
    left_out: dict[pathlib.Path, str] = {}
    for part in parts:
        left_out |= others_of(root, part, f"{CHANNEL}{ending}", ending)
    return left_out


def count_fault(path: pathlib.Path, number: Any, num_cases: int) -> DataError | None:
    """The fault of `numTraining` in a `dataset.json` of `num_cases` training cases, or None."""
    if not isinstance(number, int) or isinstance(number, bool):
        fix = f'write "numTraining": {num_cases}, without quotes'
        return DataError(f"{path}: numTraining: got {number!r}, expected a whole number", fix)
    if number != num_cases:
        fix = "copy what is missing, or correct the number"
        return DataError(f"{path}: says numTraining {number}, found {num_cases} cases", fix)
    return None


def read_classes(root: pathlib.Path) -> tuple[str, ...]:
    """The names of the classes, by label."""
    return dataset_json.class_names(dataset_json.read_description(root / dataset_json.NAME))


SPEC = DatasetSpec(
    list_cases,
    find_left_out,
    layout="dataset.json imagesTr labelsTr and, for a test, imagesTs labelsTs",
    config_name="nnunet",
    required=dataset_json.NAME,
    sign=dataset_json.NAME,
    detect_rank=1,
    read_classes=read_classes,
    oriented=True,
)
