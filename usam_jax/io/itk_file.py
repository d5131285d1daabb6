"""MetaImage (.mha) and NRRD (.nrrd) files, which SimpleITK reads.

SimpleITK returns wrong voxels if compressed data are damaged, so they are checked here before.
"""

import bz2
import functools
import math
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np
import SimpleITK

from usam_jax.io.volume import Volume, require_usable
from usam_jax.io.volume_files import volume_ending
from usam_jax.utils.errors import DataError, reading

READERS = {".mha": ("MetaImageIO", "MetaImage"), ".nrrd": ("NrrdImageIO", "NRRD")}
MAX_HEADER_BYTES = 1 << 24
CHUNK_BYTES = 1 << 20
ANY_ZLIB_FORMAT = 47  # of zlib.decompressobj: zlib or gzip, with the largest window

SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # they name no file and do not reach reports


class TextHeader(NamedTuple):
    """The lower-case fields of a file's text header, and the position of its voxels in bytes."""

    fields: dict[str, str]
    end: int


def open_itk(path: pathlib.Path) -> Volume:
    """Open an .mha or .nrrd file. Raises DataError if its header is damaged."""
    with reading(path, f"not a readable {format_name(path)} file"):
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
    affine = np.eye(4)
    if len(size) == 3:
        lps = np.column_stack([direction.reshape(3, 3) * spacing, origin])
        affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ lps
    read_fn = functools.partial(read_voxels, path, text, math.prod(size) * dtype.itemsize)
    return require_usable(Volume(path, size, affine, dtype, read_fn, find_doubts(text)))


def format_name(path: pathlib.Path) -> str:
    """The name of the file's format."""
    return READERS[(volume_ending(path) or "").lower()][1]


def make_reader(path: pathlib.Path) -> SimpleITK.ImageFileReader:
    """A reader that takes the format from the ending in any letter case."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(READERS[(volume_ending(path) or "").lower()][0])
    reader.SetFileName(str(path))
    return reader


def read_text_header(path: pathlib.Path) -> TextHeader:
    """Read the lines `NAME: VALUE` (NRRD) or `NAME = VALUE` (MetaImage) before the voxels.

    Raises DataError if the voxels are in another file, and ValueError if there is no such header.
    """
    is_meta = format_name(path) == "MetaImage"
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < MAX_HEADER_BYTES and (line := file.readline(MAX_HEADER_BYTES)):
            name, found, value = line.decode("latin-1").partition("=" if is_meta else ":")
            name, value = name.strip().lower(), value.strip()
            if found:
                fields.setdefault(name, value)
            if name == "elementdatafile" or (not is_meta and not line.strip()):
                break
        else:
            raise ValueError("its header has no end")
        end = file.tell()
    for name in ("elementdatafile", "data file", "datafile"):
        if fields.get(name, "LOCAL") != "LOCAL":
            problem = f"{path}: its voxels are in another file ({name}: {fields[name]})"
            raise DataError(problem, "save header and voxels as one file")
    return TextHeader(fields, end)


def find_doubts(text: TextHeader) -> tuple[str, ...]:
    """Warnings about the orientation in a header."""
    known = ("space", "space dimension", "elementdatafile")  # MetaImage defines its axes: LPS
    if any(x in text.fields for x in known):
        return ()
    return ("the header has no orientation (space); LPS is assumed",)


def read_voxels(path: pathlib.Path, text: TextHeader, num_bytes: int) -> np.ndarray:
    """Read the voxels [i j k] in the file's dtype. Raises DataError if they are damaged."""
    with reading(path, "the voxels cannot be read"):
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
    elif encoding != "raw" or fields.get("binarydata", "").lower() == "false":
        return  # text, which SimpleITK counts
    found = 0 if decoder else path.stat().st_size - text.end
    with path.open("rb") as file:
        file.seek(text.end)
        while decoder and not decoder.eof and (chunk := file.read(CHUNK_BYTES)):
            found += len(decoder.decompress(chunk))
    if (decoder and not decoder.eof) or found < num_bytes:
        raise EOFError(f"found {found} bytes of voxels, expected {num_bytes} and their checksum")
