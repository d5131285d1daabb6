"""Arrays in .npz and .npy files, read up to the checksums of the archive."""

import io
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from usam_jax.utils.errors import DataError, reading


def read_npz(path: pathlib.Path, keys: Sequence[str]) -> list[np.ndarray]:
    """Read the arrays of these keys. Raises DataError if the file is damaged or lacks one."""
    with reading(path, "not a readable .npz"), zipfile.ZipFile(path) as archive:
        present = sorted(x.removesuffix(".npy") for x in archive.namelist())
        if absent := [key for key in keys if key not in present]:
            raise DataError(f"{path}: lacks {absent}, found the keys {present}")
        # A member is read as a whole, since its checksum is compared at its end.
        members = [io.BytesIO(archive.read(f"{key}.npy")) for key in keys]
        return [np.load(x, allow_pickle=False) for x in members]


def read_npy(path: pathlib.Path) -> np.ndarray:
    """Read an array. Raises DataError if the file is damaged."""
    with reading(path, "not a readable .npy"):
        return np.load(path, allow_pickle=False)
