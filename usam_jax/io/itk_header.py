"""The text headers of MetaImage (.mha) and NRRD (.nrrd) files.

They are checked before SimpleITK reads them, which ignores some fields, guesses others, and crashes
on lists of numbers of another length.
"""

import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from usam_jax.io.volume import SAVE_AGAIN
from usam_jax.io.volume_files import volume_ending
from usam_jax.utils.errors import DataError

META, NRRD = "MetaImage", "NRRD"
NAMES = {".mha": META, ".nrrd": NRRD}
MAX_HEADER_BYTES = 1 << 24
DIMENSIONS = {META: "ndims", NRRD: "dimension"}
SIZES = {META: "dimsize", NRRD: "sizes"}
SPACINGS = ("elementspacing", "elementsize", "spacings", "space directions")
MATRICES = ("transformmatrix", "rotation", "orientation")
POINTS = ("offset", "position", "origin", "centerofrotation", "space origin")
# Fields that hold numbers, with their count.
COUNTS = {
    **dict.fromkeys((*DIMENSIONS.values(), "elementnumberofchannels", "space dimension"), 1),
    **dict.fromkeys((*SIZES.values(), *SPACINGS, *POINTS), 3),
    **dict.fromkeys((*MATRICES, "space directions"), 9),
    **dict.fromkeys(("headersize", "compresseddatasize", "byte skip", "line skip"), 1),
}
# Fields that SimpleITK ignores or misreads, by the value with which they change nothing.
IGNORED = {
    "elementtointensityfunctionslope": 1,
    "elementtointensityfunctionoffset": 0,
    "headersize": 0,
    "byte skip": 0,
    "line skip": 0,
}
MM = ("mm", "millimeter", "millimeters", "?", "")
ENCODINGS = ("raw", "gzip", "gz", "bzip2", "bz2", "txt", "text", "ascii", "hex")
# The values of `space` that say where left and front are.
SPACES = (
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las"),
)


class TextHeader(NamedTuple):
    """The lower-case fields of a file's text header, and the position of its voxels in bytes."""

    fields: dict[str, str]
    end: int


def format_name(path: pathlib.Path) -> str:
    """The name of the file's format."""
    return NAMES[(volume_ending(path) or "").lower()]


def read_text_header(path: pathlib.Path) -> TextHeader:
    """Read and check the text header of a file.

    Its lines are `NAME: VALUE` (NRRD) or `NAME = VALUE` (MetaImage). Raises DataError if they are not those of a volume with known voxels, and ValueError if there is
    no such header.
    """
    kind = format_name(path)
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < MAX_HEADER_BYTES and (line := file.readline(MAX_HEADER_BYTES)):
            name, found, value = line.decode("latin-1").partition("=" if kind == META else ":")
            name, value = name.strip().lower(), value.strip()
            if name in fields and name in COUNTS:
                raise ValueError(f"its header has {name} twice")
            if found:
                fields.setdefault(name, value)
            if name == "elementdatafile" or (kind == NRRD and not line.strip()):
                break
        else:
            raise ValueError("its header has no end")
        end = file.tell()
    for name in ("elementdatafile", "data file", "datafile"):
        if fields.get(name, "LOCAL").upper() != "LOCAL":
            problem = f"{path}: its voxels are in another file ({name}: {fields[name]})"
            raise DataError(problem, "save header and voxels as one file")
    require_numbers(path, fields, kind)
    require_spacing(path, fields)
    return TextHeader(fields, end)


def require_numbers(path: pathlib.Path, fields: dict[str, str], kind: str) -> None:
    """Raise DataError if a field has another number of numbers than that of a 3-D volume."""
    dimensions = fields.get(DIMENSIONS[kind], "missing")
    if read_floats(dimensions) != [3]:
        raise DataError(f"{path}: has {dimensions} dimensions, expected 3")
    sizes = read_floats(fields.get(SIZES[kind], ""))
    if len(sizes) != 3 or not all(x >= 1 and x.is_integer() for x in sizes):
        found = fields.get(SIZES[kind], "missing")
        raise DataError(f"{path}: {SIZES[kind]} is {found}, expected three positive numbers")
    for name, count in COUNTS.items():
        if name in fields and name not in SPACINGS:
            numbers = read_floats(fields[name])
            if len(numbers) != count or not np.isfinite(numbers).all():
                problem = (
                    f"{path}: {name} of the header is {fields[name]}, expected {count} numbers"
                )
                raise DataError(problem, "save it again")
    if (encoding := fields.get("encoding", "raw").lower()) not in ENCODINGS:
        raise DataError(f"{path}: encoding is {encoding}, expected one of {', '.join(ENCODINGS)}")
    for name, value in IGNORED.items():
        if name in fields and read_floats(fields[name]) != [value]:
            problem = f"{path}: {name} of the header is {fields[name]}, expected {value}"
            raise DataError(problem, "save it again without it")


def require_spacing(path: pathlib.Path, fields: dict[str, str]) -> None:
    """Raise DataError if a header leaves the size of voxels open.

    SimpleITK takes 1 mm for a spacing that is missing.
    """
    name = next((x for x in SPACINGS if x in fields), "")
    found = fields.get(name, "missing")
    numbers = read_floats(found)
    is_vectors = name == "space directions"
    if len(numbers) != COUNTS.get(name) or not all(
        math.isfinite(x) and (is_vectors or x > 0) for x in numbers
    ):
        problem = f"{path}: the spacing of its header is {found}, expected positive numbers"
        raise DataError(problem, SAVE_AGAIN)
    units = re.findall(r'"(.*?)"', fields.get("space units", ""))
    if wrong := [x for x in (*units, fields.get("distanceunits", "mm")) if x.lower() not in MM]:
        raise DataError(f"{path}: the unit of its header is {wrong[0]}, expected mm", SAVE_AGAIN)


def read_floats(text: str) -> list[float]:
    """The numbers in a text with spaces, commas and parentheses, or NaN if it holds other words."""
    words = [x for x in re.split(r"[\s(),]+", text) if x]
    try:
        return [float(x) for x in words] or [math.nan]
    except ValueError:
        return [math.nan]


def find_doubts(text: TextHeader) -> tuple[str, ...]:
    """Warnings about the orientation in a header. MetaImage defines its axes: LPS."""
    space = text.fields.get("space", "none")
    if "elementdatafile" in text.fields or space.lower() in SPACES:
        return ()
    return (f"the header has no orientation (space: {space}); LPS is assumed",)
