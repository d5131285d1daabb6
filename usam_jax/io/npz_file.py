"""Arrays of an .npz file, read without pickle."""

import io
import zipfile

import numpy as np

from usam_jax.utils.errors import WeightsError

# Weights hardly compress, so a file that claims much more than its size is not genuine.
MAX_EXPANSION = 4


def is_npz(archive: zipfile.ZipFile) -> bool:
    """Return whether all entries of a zip file are arrays of NumPy."""
    names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_npz(archive: zipfile.ZipFile, file_bytes: int) -> dict[str, np.ndarray]:
    """Return the arrays by name. Raises WeightsError if one is not of numbers, or too large."""
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > MAX_EXPANSION * file_bytes:
        raise WeightsError(f"claims {total} bytes of arrays in a file of {file_bytes} bytes.")
    arrays = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        array = np.lib.format.read_array(io.BytesIO(archive.read(entry)), allow_pickle=False)
        if array.dtype.kind not in "biuf":
            raise WeightsError(f"{name!r} has the dtype {array.dtype}, expected numbers.")
        arrays[name] = array
    return arrays
