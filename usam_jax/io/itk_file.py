"""MetaImage (.mha) and NRRD (.nrrd) files, which SimpleITK reads.

SimpleITK returns wrong voxels if compressed data are damaged, so they are checked here before.
"""

import bz2
import contextlib
import functools
import math
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import SimpleITK

from usam_jax.io.volume import (
    MAX_SPACING_DIFFERENCE,
    SAVE_AGAIN,
    Volume,
    require_usable,
)
from usam_jax.io.volume_files import volume_ending
from usam_jax.utils.errors import DataError, reading

READERS = {".mha": ("MetaImageIO", "MetaImage"), ".nrrd": ("NrrdImageIO", "NRRD")}
MAX_HEADER_BYTES = 1 << 24
CHUNK_BYTES = 1 << 20
ANY_ZLIB_FORMAT = 47  # of zlib.decompressobj: zlib or gzip, with the largest window

SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # they name no file and do not reach reports


# Fields of MetaImage that SimpleITK ignores or misreads, by the value with which they change nothing.
IGNORED = {
    "elementtointensityfunctionslope": 1,
    "elementtointensityfunctionoffset": 0,
    "headersize": 0,
}
MM = ("mm", "millimeter", "millimeters", "?", "")
SPACINGS = ("elementspacing", "elementsize", "spacings", "space directions")
# The values of `space` that say where left and front are.
SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
SPACES += ("lps", "ras", "las")


class TextHeader(NamedTuple):
    """The lower-case fields of a file's text header, and the position of its voxels in bytes."""

    fields: dict[str, str]
    end: int


def open_itk(path: pathlib.Path) -> Volume:
    """Open an .mha or .nrrd file. Raises DataError if its header is damaged."""
    with reading(path, f"not a readable {format_name(path)} file"), plain_errors():
        text = read_text_header(path)
        require_sizes(path, text.fields)
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
        lengths = np.linalg.norm(direction.reshape(3, 3), axis=0)
        if lengths.all() and np.abs(lengths - 1).max() > MAX_SPACING_DIFFERENCE:
            raise DataError(
                f"{path}: the columns of TransformMatrix have the lengths {lengths.round(4).tolist()}, "
                "expected 1: the voxel size is uncertain",
                SAVE_AGAIN,
            )
        lps = np.column_stack([direction.reshape(3, 3) * spacing, origin])
        affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ lps
    read_fn = functools.partial(read_voxels, path, text, math.prod(size) * dtype.itemsize)
    return require_usable(Volume(path, size, affine, dtype, read_fn, find_doubts(text)))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Shorten SimpleITK's errors to what was wrong, without places in its source and names of files."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error).rsplit("ERROR: ", 1)[-1].split("): ", 1)[-1]) from error


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


def require_sizes(path: pathlib.Path, fields: dict[str, str]) -> None:
    """Raise DataError if a header leaves the size of voxels open, or SimpleITK misreads it.

    SimpleITK takes 1 mm for a spacing that is missing.
    """
    spacing = next((fields[x] for x in SPACINGS if x in fields), "missing")
    numbers = read_floats(spacing)
    may_be_negative = "space directions" in fields
    if not np.isfinite(numbers).all() or (not may_be_negative and min(numbers) <= 0):
        problem = f"{path}: the spacing of its header is {spacing}, expected positive numbers"
        raise DataError(problem, SAVE_AGAIN)
    units = re.findall(r'"(.*?)"', fields.get("space units", ""))
    if wrong := [x for x in (*units, fields.get("distanceunits", "mm")) if x.lower() not in MM]:
        raise DataError(f"{path}: the unit of its header is {wrong[0]}, expected mm", SAVE_AGAIN)
    for name, value in IGNORED.items():
        if name in fields and read_floats(fields[name]) != [value]:
            problem = f"{path}: {name} of the header is {fields[name]}, expected {value}"
            raise DataError(problem, "save it again without it")


def read_floats(text: str) -> list[float]:
    """The numbers in a text with spaces, commas and parentheses, NaN for what is not a number."""
    words = [x for x in re.split(r"[\s(),]+", text) if x]
    try:
        return [float(x) for x in words] or [math.nan]
    except ValueError:
        return [math.nan]


def find_doubts(text: TextHeader) -> tuple[str, ...]:
    """Warnings about the orientation in a header."""
    space = text.fields.get("space", "none")
    if (
        "elementdatafile" in text.fields or space.lower() in SPACES
    ):  # MetaImage defines its axes: LPS
        return ()
    return (f"the header has no orientation (space: {space}); LPS is assumed",)


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
    elif encoding != "raw" or fields.get("binarydata", "").lower() == "false":
        return  # text, which SimpleITK counts
    found = 0 if decoder else path.stat().st_size - text.end
    with path.open("rb") as file:
        file.seek(text.end)
        while decoder and not decoder.eof and (chunk := file.read(CHUNK_BYTES)):
            found += len(decoder.decompress(chunk))
    if (decoder and not decoder.eof) or found < num_bytes:
        raise EOFError(f"found {found} bytes of voxels, expected {num_bytes} and their checksum")
