"""Data sets as they lie on disk: which cases there are, and how one is read.

A case is what is read in one go: a slice of CARE, a volume elsewhere.
"""

import collections
import csv
import dataclasses
import functools
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data import phantom
from usam_jax.errors import DataError, UsageError, list_some

SPLITS = ("train", "test")
CARE_SHAPE = (224, 224)
WHERE_IS_CARE = (
    "CARE is given out by its authors on request (see the paper's project page); its folder holds "
    "train/train_npz and test/test_npz. configs/phantom.py needs no data."
)

# float32[n h w], nominally in [0, 1], and uint8[n h w].
Slices = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One case: `load_fn` reads its slices, `stamp` changes when its source does.

    `patient` is None where the data set does not tell whose slices these are.
    """

    name: str
    patient: str | None
    num_slices: int
    stamp: tuple
    load_fn: Callable[[], Slices]


def list_cases(config: ConfigDict) -> dict[str, list[Case]]:
    """The cases of each split of the data set that `config.data` names.

    Raises DataError where the data set is absent or a split is empty.
    """
    num_classes = len(config.classes)
    if config.kind == "care":
        return {
            split: care_cases(pathlib.Path(config.root), split, num_classes) for split in SPLITS
        }
    if config.kind == "phantom":
        return phantom_cases(config)
    raise UsageError(f"config.data.kind: found {config.kind!r}, expected care or phantom")


def care_cases(root: pathlib.Path, split: str, num_classes: int) -> list[Case]:
    """The slices `ROOT/SPLIT/SPLIT_npz/*.npz`, those of `SPLIT_bbox.csv` if there is one."""
    folder = root / split / f"{split}_npz"
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not there; config.data.root is {str(root)!r}, expected a folder with the "
            f"CARE data set.\n{WHERE_IS_CARE}"
        )
    found = {path.stem: path for path in folder.glob("*.npz")}
    names = list(found)
    table = root / split / f"{split}_bbox.csv"
    if table.is_file():
        names = read_names(table)
        absent = [name for name in names if name not in found]
        if absent:
            raise DataError(
                f"{table}: {len(absent)} of {len(names)} names have no file in {folder}:\n"
                f"{list_some(absent)}\nCopy the missing files, or delete their rows."
            )
    if not names:
        raise DataError(f"{folder} holds no slices (NAME.npz).\n{WHERE_IS_CARE}")
    return [care_case(found[name], num_classes) for name in sorted(names, key=natural_order)]


def read_names(table: pathlib.Path) -> list[str]:
    """The column `name` of CARE's CSV. The boxes beside it are not read: labels give them."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
            names = [row["name"].strip().removesuffix(".npz") for row in rows]
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table}: found no readable column `name` ({error!r}), expected the columns name and "
            "box. Delete the file to use every .npz of the folder."
        ) from error
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{table}: names that occur more than once:\n{list_some(repeated)}")
    return names


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key under which 9 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def care_case(path: pathlib.Path, num_classes: int) -> Case:
    stat = path.stat()
    load_fn = functools.partial(load_care_slice, path, num_classes)
    return Case(path.stem, None, 1, (path.name, stat.st_size, stat.st_mtime_ns), load_fn)


def load_care_slice(path: pathlib.Path, num_classes: int) -> Slices:
    """One slice; labels above the last class count as it, as the data set's authors do.

    Raises DataError that names the file for anything but an image and a label of 224x224.
    """
    try:
        # Opened here, for np.load leaves a damaged archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            absent = [key for key in ("image", "label") if key not in file.files]
            if absent:
                raise DataError(f"{path}: lacks {absent}, found the keys {sorted(file.files)}")
            image, label = file["image"], file["label"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz ({error}); copy it anew") from error
    for key, array in (("image", image), ("label", label)):
        if array.shape != CARE_SHAPE:
            raise DataError(f"{path}: {key} has the shape {array.shape}, expected {CARE_SHAPE}")
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
    return image.astype(np.float32)[None], labels[None]


def phantom_cases(config: ConfigDict) -> dict[str, list[Case]]:
    """Generated patients: `config.num_patients` of train and test, numbered through."""
    num_train, num_test = config.num_patients
    numbers = {"train": range(num_train), "test": range(num_train, num_train + num_test)}
    return {split: [phantom_case(config, i) for i in numbers[split]] for split in SPLITS}


def phantom_case(config: ConfigDict, number: int) -> Case:
    name = f"phantom_{number:04d}"
    arguments = (config.phantom_seed, number, config.image_size, config.slices_per_patient)
    load_fn = functools.partial(load_phantom, *arguments)
    return Case(name, name, config.slices_per_patient, arguments, load_fn)


def load_phantom(seed: int, number: int, size: int, num_slices: int) -> Slices:
    made = phantom.make_patient(seed, number, size, num_slices)
    return window_hu(made.image), made.labels


def window_hu(image: np.ndarray, level: float = 40.0, width: float = 400.0) -> np.ndarray:
    """HU to grey in [0, 1] through a soft-tissue window; values outside it are clipped."""
    grey = (image - (level - width / 2)) / width
    return np.clip(grey, 0.0, 1.0).astype(np.float32)
