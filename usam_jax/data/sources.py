"""The data set that a config names, as the cases of each split."""

import functools
import pathlib

from ml_collections import ConfigDict

from usam_jax.data import care, phantom, volume_sets
from usam_jax.data.case import Case, Slices
from usam_jax.data.volumes import window_hu
from usam_jax.errors import UsageError


def list_cases(config: ConfigDict) -> dict[str, list[Case]]:
    """The cases of the splits train, val (where the data set has one) and test.

    Raises DataError where the data set is absent or incomplete.
    """
    root, num_classes = pathlib.Path(config.root), len(config.classes)
    match config.kind:
        case "care":
            return {x: care.care_cases(root, x, num_classes) for x in ("train", "test")}
        case "word":
            return volume_sets.word_cases(root, config)
        case "word_npy":
            return volume_sets.npy_cases(root, num_classes)
        case "nnunet":
            return volume_sets.nnunet_cases(root, config)
        case "phantom":
            return phantom_cases(config)
    raise UsageError(
        f"config.data.kind: found {config.kind!r}, expected care, word, word_npy, nnunet or phantom"
    )


def phantom_cases(config: ConfigDict) -> dict[str, list[Case]]:
    """Generated patients: `config.num_patients` of train and test, numbered through."""
    if "num_patients" not in config:
        raise UsageError(
            "config.data.kind=phantom needs the fields of configs/phantom.py; use that"
        )
    num_train, num_test = config.num_patients
    numbers = {"train": range(num_train), "test": range(num_train, num_train + num_test)}
    return {split: [phantom_case(config, i) for i in numbers[split]] for split in numbers}


def phantom_case(config: ConfigDict, number: int) -> Case:
    name = f"phantom_{number:04d}"
    arguments = [config.phantom_seed, number, config.image_size, config.slices_per_patient]
    window = [config.window_level, config.window_width]
    load_fn = functools.partial(load_phantom, *arguments, *window)
    return Case(name, name, config.slices_per_patient, arguments, load_fn)


def load_phantom(
    seed: int, number: int, size: int, num_slices: int, level: float = 40.0, width: float = 400.0
) -> Slices:
    made = phantom.make_patient(seed, number, size, num_slices)
    return window_hu(made.image, level, width), made.labels
