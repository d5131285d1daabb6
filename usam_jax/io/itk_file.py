"""MetaImage (.mha) and NRRD (.nrrd) files, which SimpleITK reads.

SimpleITK returns wrong voxels if compressed data are damaged, so they are checked here before.
"""

import bz2
import contextlib
import functools
import math
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import SimpleITK

from usam_jax.io.itk_header import (
    META,
    NRRD,
    TextHeader,
    find_doubts,
    format_name,
    read_text_header,
)
from usam_jax.io.volume import (
    MAX_SPACING_DIFFERENCE,
    SAVE_AGAIN,
    Volume,
    require_usable,
)
from usam_jax.utils.errors import DataError, reading

READERS = {META: "MetaImageIO", NRRD: "NrrdImageIO"}
MAX_VALUE_BYTES = 8
CHUNK_BYTES = 1 << 20
ANY_ZLIB_FORMAT = 47  # of zlib.decompressobj: zlib or gzip, with the largest window

SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # they name no file and do not reach reports


def open_itk(path: pathlib.Path) -> Volume:
    """Open an .mha or .nrrd file. Raises DataError if its header is damaged."""
    with reading(path, f"not a readable {format_name(path)} file"), plain_errors():
        text = read_text_header(path)
        reader = make_reader(path)
        reader.ReadImageInformation()
        size, direction = reader.GetSize(), np.array(reader.GetDirection())
        spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
        pixel = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
        if "complex" in pixel or reader.GetNumberOfComponents() != 1:
            raise DataError(f"{path}: holds {pixel} voxels, expected one real number for each")
        sample = SimpleITK.Image([1] * len(size), reader.GetPixelID())
        dtype = SimpleITK.GetArrayViewFromImage(sample).dtype
    if len(size) != 3:
        raise DataError(f"{path}: has {len(size)} dimensions {size}, expected 3")
    axes, affine = direction.reshape(3, 3), np.eye(4)
    lengths = np.linalg.norm(axes, axis=0)
    if lengths.all() and np.abs(lengths - 1).max() > MAX_SPACING_DIFFERENCE:
        raise DataError(
            f"{path}: the columns of TransformMatrix have the lengths {lengths.round(4).tolist()}, "
            "expected 1: the voxel size is uncertain",
            SAVE_AGAIN,
        )
    lps = np.column_stack([axes * spacing, origin])
    affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ lps
    read_fn = functools.partial(read_voxels, path, text, math.prod(size) * dtype.itemsize)
    return require_usable(Volume(path, size, affine, dtype, read_fn, find_doubts(text)))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Shorten SimpleITK's errors to what was wrong, without places in its source."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error).rsplit("ERROR: ", 1)[-1].split("): ", 1)[-1]) from error


def make_reader(path: pathlib.Path) -> SimpleITK.ImageFileReader:
    """A reader that takes the format from the ending in any letter case."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(READERS[format_name(path)])
    reader.SetFileName(str(path))
    return reader


def read_voxels(path: pathlib.Path, text: TextHeader, num_bytes: int) -> np.ndarray:
    """Read the voxels [i j k] in the file's dtype. Raises DataError if they are damaged."""
    with reading(path, "the voxels cannot be read"), plain_errors():
        check_voxels(path, text, num_bytes)
        return SimpleITK.GetArrayFromImage(make_reader(path).Execute()).transpose(2, 1, 0)


def check_voxels(path: pathlib.Path, text: TextHeader, num_bytes: int) -> None:
    """Measure the voxels, and decompress compressed ones up to their checksum.

    Raises zlib.error, OSError or EOFError if they are damaged or less than `num_bytes`.
    """
    fields = text.fields
    decoder: Any = None
    encoding = fields.get("encoding", "raw").lower()
    if encoding in ("gzip", "gz") or fields.get("compresseddata", "").lower() == "true":
        decoder = zlib.decompressobj(ANY_ZLIB_FORMAT)
    elif encoding in ("bzip2", "bz2"):
        decoder = bz2.BZ2Decompressor()
    found = 0 if decoder else path.stat().st_size - text.end
    if not decoder and (encoding != "raw" or fields.get("binarydata", "").lower() == "false"):
        found *= MAX_VALUE_BYTES  # text, of which SimpleITK counts the values
    with path.open("rb") as file:
        file.seek(text.end)
        while decoder and not decoder.eof and (chunk := file.read(CHUNK_BYTES)):
            found += len(decoder.decompress(chunk))
    if (decoder and not decoder.eof) or found < num_bytes:
        raise EOFError(f"found {found} bytes of voxels, expected {num_bytes} and their checksum")
