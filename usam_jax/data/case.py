"""What every kind of data set is turned into: cases, each read in one go."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from usam_jax.io.geometry import Geometry
from usam_jax.utils.errors import DataError

# Grey float[n h w], nominally in [0, 1], and class indices uint8[n h w].
Slices = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A slice of CARE, or a volume elsewhere; `load_fn` reads its slices.

    `patient` is None where the data set does not tell whose slices these are. `source_stamp` (JSON)
    changes when the source does. A case that cannot be used has no slices, and its `load_fn`
    raises the DataError that says why.
    """

    name: str
    patient: str | None
    num_slices: int
    source_stamp: list[Any]
    load_fn: Callable[[], Slices]
    geometry: Geometry | None = None
    files: tuple[pathlib.Path, ...] = ()

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a pixel; where they are not known only their ratio, 1, matters."""
        return self.geometry.spacing_mm[1:] if self.geometry else (1.0, 1.0)


Cases = dict[str, list[Case]]  # by split: train, val, test


def unusable_case(name: str, error: DataError) -> Case:
    """A place holder, so that all that is wrong with a data set is told at once."""

    def load_fn() -> Slices:
        raise error

    return Case(name, None, 0, [str(error)], load_fn)


def find_fault(case: Case) -> DataError | None:
    """Why a case cannot be used; None for one that can."""
    try:
        case.load_fn()
    except DataError as error:
        return error
    return None


def source_stamp(*paths: pathlib.Path) -> list[Any]:
    """Name, size and time of files. Raises DataError where one cannot be looked at."""
    stamp: list[Any] = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        stamp += [path.name, stat.st_size, stat.st_mtime_ns]
    return stamp


def file_names(folder: pathlib.Path, end: str) -> list[str]:
    """The files of a folder that end so, hidden ones aside, without that ending.

    Raises OSError where the folder cannot be read, which `glob` would take for an empty one.
    """
    names = (x for x in os.listdir(folder) if x.endswith(end) and not x.startswith("."))
    return [x.removesuffix(end) for x in names]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key under which 9 comes before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
