"""DICOM files: which files of a folder they are, and their headers, with every fault named."""

import logging
import pathlib
import re
import struct
import warnings

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from usam_jax.io.side_files import is_document, is_image
from usam_jax.io.volume_files import volume_ending
from usam_jax.utils.errors import DataError, list_some, reading, unreadable

Header = pydicom.FileDataset
DICOMDIR = "DICOMDIR"  # the index of a CD, at its top


def quiet_pydicom() -> None:
    """Let pydicom accept what this module does not use, which it would warn about file by file.

    Among it are texts in unknown character sets.
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")


quiet_pydicom()


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's files by name, without the files `._NAME` that macOS adds.

    Raises DataError if the folder cannot be read.
    """
    try:
        names = sorted(x for x in folder.iterdir() if not x.name.startswith("._"))
    except OSError as error:
        raise unreadable(folder, error) from error
    return [x for x in names if not x.is_dir()]


def split_files(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The folder's DICOM files, recognised by their content, and its other files, by name.

    Raises DataError if a file cannot be read.
    """
    dicom: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    for path in list_files(folder):
        try:
            (dicom if read_start(path) else others).append(path)
        except OSError as error:
            raise unreadable(path, error) from error
    return dicom, others


def starts_as_dicom(path: pathlib.Path) -> bool:
    """Whether a file can be read and is DICOM."""
    try:
        return read_start(path)
    except OSError:
        return False


def read_start(path: pathlib.Path) -> bool:
    """Whether a file is DICOM by its first bytes. Raises OSError if it cannot be read."""
    if path.exists() and not path.is_file():  # reading a named pipe would wait for ever
        return False
    with path.open("rb") as stream:
        return is_dicom(stream.read(132))


def is_dicom(start: bytes) -> bool:
    """Whether a file with these first 132 bytes is DICOM.

    Either the prefix DICM follows a preamble, or a data set starts at once: with group 2 or 8, and
    the explicit or implicit length of its first element.
    """
    if start[128:] == b"DICM":
        return True
    group, element, length = struct.unpack("<HHL", start[:8].ljust(8, b"\xff"))
    is_explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6]) is not None
    return group in (2, 8) and element < 0x100 and (is_explicit or length < 0x100)


def path_of(header: Header) -> pathlib.Path:
    """The file that a header was read from."""
    return pathlib.Path(str(header.filename))


def fault(header: Header, problem: str, fix: str = "export the series again") -> DataError:
    """The DataError for a file's `problem`."""
    return DataError(f"{path_of(header)}: {problem}", fix)


def read_file(path: pathlib.Path, with_pixels: bool) -> Header:
    """Read a file, even without preamble and file meta information.

    Raises nearly any type for a damaged file.
    """
    header = pydicom.dcmread(path, force=True, stop_before_pixels=not with_pixels)
    if "TransferSyntaxUID" not in header.file_meta:
        is_implicit, is_little = header.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return header


def read_header(path: pathlib.Path) -> Header:
    """Read a file without its pixels. Raises DataError if it is damaged."""
    with reading(path, "the header cannot be read"):
        header = read_file(path, with_pixels=False)
        for element in header:  # pydicom parses an element on first access
            str(element.value)
    return header


def series_uid(header: Header) -> str:
    """The SeriesInstanceUID of a file, "" if it has none."""
    return str(header.get("SeriesInstanceUID") or "")


def read_numbers(header: Header, keyword: str, count: int, lengths: bool = False) -> np.ndarray:
    """Read the numbers of a tag as float64[count].

    Raises DataError if they are missing, not finite or not `count`, or, for `lengths`, not above 0.
    """
    found = header.get(keyword, "missing")
    try:
        numbers = np.array(found, np.float64).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if len(numbers) != count or not np.isfinite(numbers).all() or (lengths and numbers.min() <= 0):
        expected = f"{count} number" + "s" * (count > 1) + " above 0" * lengths
        raise fault(header, f"{keyword} is {found}, expected {expected}")
    return numbers


def find_slices(
    folder: pathlib.Path, chosen: str | None
) -> tuple[list[Header], tuple[str, ...], tuple[pathlib.Path, ...]]:
    """Read the headers of the folder's slices, and make notes on its other files.

    The last of the results are those other files that by their names may be damaged slices. Raises
    DataError if there are no slices, or as `choose_series`.
    """
    dicom, others = split_files(folder)
    named = (is_document, is_image, volume_ending)
    unknown = tuple(x for x in others if not any(is_known(x) for is_known in named))
    localisers: list[pathlib.Path] = []
    series: dict[str, list[Header]] = {}
    for path in dicom:
        header = read_header(path)
        if "DirectoryRecordSequence" in header:
            others.append(path)
        elif "LOCALIZER" in str(header.get("ImageType")):
            localisers.append(path)
        else:
            series.setdefault(series_uid(header), []).append(header)
    if broken := [x for x in others if x.suffix.lower() == ".dcm"]:
        raise DataError(f"{broken[0]}: is not a DICOM file", "copy it again, or remove it")
    notes = tuple(
        f"{folder}: {len(paths)} left out as {kind}: {', '.join(x.name for x in paths[:3])}"
        + ", ..." * (len(paths) > 3)
        for kind, paths in (("not a DICOM slice", others), ("localiser", localisers))
        if paths
    )
    if len(series) > 1 and "" in series:
        problem = "has no SeriesInstanceUID, unlike other files of the folder"
        raise fault(series[""][0], problem, "copy it again, or remove it")
    if not series:
        found = "; ".join(notes) or f"{folder}: holds no file"
        raise DataError(found, "expected the slices of one CT series; give the folder with them")
    return choose_series(folder, series, chosen), notes, unknown


def choose_series(
    folder: pathlib.Path, series: dict[str, list[Header]], chosen: str | None
) -> list[Header]:
    """The slices of the only series, or of the one whose UID, number or description is `chosen`.

    Raises DataError if there is not exactly one.
    """
    found = [
        headers
        for uid, headers in series.items()
        if chosen is None
        or chosen in (uid, *(str(headers[0].get(f"Series{x}")) for x in ("Number", "Description")))
    ]
    if len(found) == 1:
        return found[0]
    lines = [
        f'{uid}: {x[0].get("Modality")} "{x[0].get("SeriesDescription", "")}", {len(x)} files'
        for uid, x in series.items()
    ]
    wanted = "one" if chosen is None else f"one that is {chosen}"
    raise DataError(
        f"{folder}: holds {len(series)} series, expected {wanted}:\n{list_some(lines)}\n"
        "Give --series=UID (SeriesNumber or SeriesDescription do as well), or a folder that holds "
        "one of them alone."
    )
