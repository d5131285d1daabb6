"""Cases: what every layout of data sets is turned into, each read as a whole."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from usam_jax.data.values import GreyValues
from usam_jax.io.geometry import Geometry
from usam_jax.utils.errors import DataError

# Grey float[n h w], nominally in [0, 1], and class indices uint8[n h w].
Slices = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A volume, or a single slice in CARE and the published WORD.

    `load_fn` reads its slices. `patient` is None if the data set does not identify patients.
    `source_stamp` (JSON) changes when the source files do. A case that cannot be used has no
    slices, and its `load_fn` raises the DataError with the reason. `packed_values` are the grey
    values of a packed case before it was packed.
    """

    name: str
    patient: str | None
    num_slices: int
    source_stamp: list[Any]
    load_fn: Callable[[], Slices]
    geometry: Geometry | None = None
    files: tuple[pathlib.Path, ...] = ()
    packed_values: GreyValues | None = None

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a pixel, or (1, 1) if unknown: then only the ratio is used."""
        return self.geometry.spacing_mm[1:] if self.geometry else (1.0, 1.0)


Cases = dict[str, list[Case]]  # by split: train, val, test


def unusable_case(name: str, error: DataError) -> Case:
    """A placeholder, so that all faults of a data set can be reported at once."""

    def load_fn() -> Slices:
        raise error

    return Case(name, None, 0, [str(error)], load_fn)


def find_fault(case: Case) -> DataError | None:
    """The reason why a case cannot be used, or None."""
    try:
        case.load_fn()
    except DataError as error:
        return error
    return None


def source_stamp(*paths: pathlib.Path) -> list[Any]:
    """Name, size and modification time of each file. Raises DataError if one cannot be read."""
    stamp: list[Any] = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        stamp += [path.name, stat.st_size, stat.st_mtime_ns]
    return stamp


def file_names(folder: pathlib.Path, end: str) -> list[str]:
    """The names, without `end`, of a folder's files that end with it and are not hidden.

    Raises OSError if the folder cannot be read, which `glob` would treat as empty.
    """
    names = (x for x in os.listdir(folder) if x.endswith(end) and not x.startswith("."))
    return [x.removesuffix(end) for x in names]


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts 9 before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
