"""WORD as the published code packs it: uint8 slices `SPLIT/npy_imgs` and `SPLIT/npy_gts`."""

import functools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.case import (
    Case,
    Cases,
    Slices,
    files_named,
    natural_order,
    source_stamp,
    unusable_case,
)
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.datasets.word import HINT
from usam_jax.io.cohort import find_others
from usam_jax.io.numpy_file import read_npy
from usam_jax.utils.errors import DataError


def list_cases(data: ConfigDict) -> Cases:
    """The slices of train, val (if it exists) and test."""
    root, num_classes = pathlib.Path(data.root), len(data.classes)
    cases = {}
    for split in ("train", "val", "test"):
        images, labels = root / split / "npy_imgs", root / split / "npy_gts"
        if split == "val" and not images.is_dir():
            continue
        found = files_named(images, ".npy") if images.is_dir() else {}
        if not found:
            raise DataError(f"{images} holds no slices (NAME.npy)")
        truths = files_named(labels, ".npy") if labels.is_dir() else {}
        cases[split] = [
            npy_case(found[x], truths.get(x, labels / f"{x}.npy"), num_classes)
            for x in sorted(found, key=natural_order)
        ]
    return cases


def find_left_out(data: ConfigDict) -> dict[pathlib.Path, str]:
    """What is not named NAME.npy in the folders of the splits."""
    root = pathlib.Path(data.root)
    folders = [root / x / y for x in ("train", "val", "test") for y in ("npy_imgs", "npy_gts")]
    left_out: dict[pathlib.Path, str] = {}
    for folder in folders:
        left_out |= find_others(folder, ".npy") if folder.is_dir() else {}
    return left_out


def npy_case(image: pathlib.Path, label: pathlib.Path, num_classes: int) -> Case:
    """The case of one slice."""
    if not label.is_file():
        missing = DataError(f"{label} is not there, which {image} needs", "copy it again")
        return unusable_case(image.stem, missing)
    load_fn = functools.partial(load_npy, image, label, num_classes)
    return Case(image.stem, None, 1, source_stamp(image, label), load_fn, files=(image, label))


def load_npy(image: pathlib.Path, label: pathlib.Path, num_classes: int) -> Slices:
    """One slice. Raises DataError for anything but two uint8 arrays of one shape."""
    arrays = []
    for path in (image, label):
        array = read_npy(path)
        if array.ndim != 2 or array.dtype != np.uint8:
            raise DataError(
                f"{path}: has the shape {array.shape} and type {array.dtype}, expected uint8[h w]"
            )
        arrays.append(array)
    grey, labels = arrays
    if grey.shape != labels.shape:
        raise DataError(f"{label}: has the shape {labels.shape}, but {image} has {grey.shape}")
    if labels.max() >= num_classes:
        raise DataError(f"{label}: holds the label {labels.max()}, expected 0 to {num_classes - 1}")
    return grey[None].astype(np.float32) / 255, labels[None]


SPEC = DatasetSpec(
    list_cases,
    find_left_out,
    layout="train/npy_imgs train/npy_gts test/npy_imgs test/npy_gts",
    hint=HINT,
    config_name="word",
    required="train/npy_imgs",
    sign="train/npy_imgs",
    detect_rank=3,
)
