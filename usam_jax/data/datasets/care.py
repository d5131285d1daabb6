"""CARE as distributed: one `.npz` per slice, and a table of the slices' names."""

import collections
import csv
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
from usam_jax.io.cohort import find_others
from usam_jax.io.numpy_file import read_npz
from usam_jax.utils.errors import DataError, list_some, reading

SHAPE = (224, 224)


def list_cases(data: ConfigDict) -> Cases:
    """The slices of train and test."""
    root, num_classes = pathlib.Path(data.root), len(data.classes)
    return {split: care_cases(root, split, num_classes) for split in ("train", "test")}


def care_cases(root: pathlib.Path, split: str, num_classes: int) -> list[Case]:
    """The slices `ROOT/SPLIT/SPLIT_npz/*.npz`: those of `SPLIT_bbox.csv`, or all without it."""
    folder = root / split / f"{split}_npz"
    if not folder.is_dir():
        raise DataError(f"{folder} is not there, expected the {split} split of CARE")
    table = root / split / f"{split}_bbox.csv"
    found = files_named(folder, ".npz")
    names = read_names(table) if table.is_file() else list(found)
    if not names:
        raise DataError(f"{folder} holds no slices (NAME.npz)")
    return [
        care_case(found.get(name, folder / f"{name}.npz"), table, num_classes)
        for name in sorted(names, key=natural_order)
    ]


def find_left_out(data: ConfigDict) -> dict[pathlib.Path, str]:
    """What is not named NAME.npz among the slices, without those that the table leaves out."""
    folders = [pathlib.Path(data.root) / x / f"{x}_npz" for x in ("train", "test")]
    return find_others(folders[0], ".npz") | find_others(folders[1], ".npz")


def read_names(table: pathlib.Path) -> list[str]:
    """The column `name` of CARE's CSV, whose boxes are not needed next to the labels."""
    problem = "found no readable column `name`, expected the columns name and bbox"
    fix = "delete the file to use every .npz of the folder"
    with (
        reading(table, problem, fix),
        table.open(newline="", encoding="utf-8-sig") as file,
    ):
        names = [row["name"].strip().removesuffix(".npz") for row in csv.DictReader(file)]
    if not names:
        raise DataError(f"{table}: lists no slices", "delete it to use every .npz of the folder")
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{table}: names that occur more than once:\n{list_some(repeated)}")
    return names


def care_case(path: pathlib.Path, table: pathlib.Path, num_classes: int) -> Case:
    """The case of one slice."""
    if not path.is_file():
        missing = DataError(
            f"{path} is not there, but {table} names it", "copy it, or delete its row"
        )
        return unusable_case(path.stem, missing)
    load_fn = functools.partial(load_care_slice, path, num_classes)
    return Case(path.stem, None, 1, source_stamp(path), load_fn, files=(path,))


def load_care_slice(path: pathlib.Path, num_classes: int) -> Slices:
    """One slice, with labels above the last class set to it as the data set's authors do.

    Raises DataError unless the file holds an image and a label of 224x224.
    """
    image, label = read_npz(path, ("image", "label"))
    for key, array in (("image", image), ("label", label)):
        if array.shape != SHAPE:
            raise DataError(f"{path}: {key} has the shape {array.shape}, expected {SHAPE}")
        if array.dtype.kind not in "fiub":
            raise DataError(f"{path}: {key} has the type {array.dtype}, expected numbers")
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {key} holds NaN or infinite values")
    odd = label[(label != np.round(label)) | (label < 0)]
    if odd.size:
        raise DataError(
            f"{path}: label holds {odd.flat[0]:g} in {odd.size} pixels, expected whole numbers "
            f"from 0"
        )
    labels = np.minimum(label, num_classes - 1).astype(np.uint8)
    # The image keeps its precision: a rounded value could become the next grey level.
    return image[None], labels[None]


SPEC = DatasetSpec(
    list_cases,
    find_left_out,
    layout="train/train_npz and test/test_npz",
    hint=(
        "CARE is given out by its authors on request (see the paper's project page); "
        "configs/phantom.py needs no data."
    ),
    config_name="care",
    required="train/train_npz",
    sign="train/train_npz",
    detect_rank=4,
    transposed=True,
)
