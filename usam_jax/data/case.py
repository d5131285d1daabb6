"""Cases: what every layout of data sets is turned into, each read as a whole."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from usam_jax.data.values import GreyValues
from usam_jax.io.geometry import Geometry
from usam_jax.io.volume_files import compose
from usam_jax.utils.errors import DataError
from usam_jax.utils.files import checksum

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


def files_unchanged(
    paths: Sequence[pathlib.Path], stamp: list[Any], digests: list[str] | None
) -> bool:
    """Whether files still have a recorded `source_stamp`, or differ in their times alone.

    Then their contents decide, by the recorded checksums `digests` if there are any.
    """
    now = source_stamp(*paths)
    if now == stamp:
        return True
    only_times = len(now) == len(stamp) and all(
        a == b for i, (a, b) in enumerate(zip(now, stamp, strict=True)) if i % 3 != 2
    )
    return bool(digests) and only_times and [checksum(x) for x in paths] == digests


def files_named(folder: pathlib.Path, end: str) -> dict[str, pathlib.Path]:
    """A folder's files that end with `end` in any letter case, by their names.

    The names lack `end`, and hidden files do not count. Raises DataError if two files have one name, and OSError if the folder
    cannot be read, which `glob` would treat as empty.
    """
    found: dict[str, pathlib.Path] = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith(".") or not file.lower().endswith(end.lower()):
            continue
        name = compose(file[: -len(end)])
        if name in found:
            raise DataError(f"{folder / file} and {found[name]} are one case", "remove one of them")
        found[name] = folder / file
    return found


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts 9 before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
