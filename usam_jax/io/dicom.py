"""A folder of DICOM slices as a volume.

A slice's place comes from ImagePositionPatient and ImageOrientationPatient alone: file names,
InstanceNumber, SliceThickness and PatientPosition are too often wrong. The grid of a series has the
axes (column, row, file), with the files sorted along the normal of the slices.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pydicom
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from usam_jax.io.geometry import MAX_OFF_VOXELS, Geometry, as_slices, make_geometry
from usam_jax.utils.errors import DataError, list_some

# This module checks what it uses; pydicom would warn about everything else, file by file.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

Header = pydicom.FileDataset
SAME_IN_ALL = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}
MAX_DIFFERENCE = 1e-4  # between files; some scanners write these values with few digits
MIN_GAP_MM = 0.01
MAX_TILT_DEGREES = 0.1
UNTILT = "have the workstation resample it without tilt"
EXPECTED = {  # by tag: the accepted values of a slice, and the fix for others
    "Modality": (("CT",), "give a CT series"),
    "NumberOfFrames": ((1, None, ""), "export multi-frame files as single slices (classic CT)"),
    "PhotometricInterpretation": (("MONOCHROME2", "MONOCHROME1"), "leave out colour images"),
    # Dual-energy maps have other units; US means unspecified.
    "RescaleType": (("HU", None, "", "US", "HU_MOD"), "give a series in HU"),
}


@dataclasses.dataclass(frozen=True)
class Series:
    """A CT series: HU float32[n h w], oriented as by `nifti.read_slices`, and its files.

    `files` follow the third axis of the file grid (`geometry.affine`, `geometry.file_axes`), which
    may run from the head down. `notes` list the files of the folder that were left out.
    """

    hu: np.ndarray
    geometry: Geometry
    files: tuple[pathlib.Path, ...]
    notes: tuple[str, ...]


def is_series(folder: pathlib.Path) -> bool:
    """Whether the folder itself holds DICOM files. Raises DataError as `split_files`."""
    return folder.is_dir() and bool(split_files(folder)[0])


def split_files(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The folder's DICOM files, recognised by the prefix DICM, and its other files, by name.

    Raises DataError if one cannot be read.
    """
    dicom: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    try:
        for path in sorted(x for x in folder.iterdir() if x.is_file()):
            with path.open("rb") as stream:
                (dicom if stream.read(132)[128:] == b"DICM" else others).append(path)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return dicom, others


def read_series(folder: pathlib.Path) -> Series:
    """Read the only CT series in a folder.

    The thickness of a single slice is its SliceThickness. Raises DataError unless the folder holds
    all slices of one series, in HU, on one regular grid.
    """
    headers, notes = find_slices(folder)
    for header in headers:
        check_slice(header)
    check_alike(headers)
    headers, affine = sort_slices(headers)
    frames = np.empty((len(headers), headers[0].Rows, headers[0].Columns), np.float32)
    for frame, header in zip(frames, headers, strict=True):
        frame[:] = read_hu(header)
    voxels = frames.transpose(2, 1, 0)
    hu, geometry = as_slices(voxels, affine), make_geometry(voxels.shape, affine)
    return Series(hu, geometry, tuple(path_of(x) for x in headers), notes)


def path_of(header: Header) -> pathlib.Path:
    """The file that a header was read from."""
    return pathlib.Path(str(header.filename))


def fault(header: Header, problem: str, fix: str = "export the series again") -> DataError:
    """The DataError for a file's `problem`."""
    return DataError(f"{path_of(header)}: {problem}", fix)


def read_header(path: pathlib.Path) -> Header:
    """Read a file without its pixels. Raises DataError if it is damaged."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for element in header:  # pydicom parses an element on first access
            str(element.value)
    except Exception as error:  # pydicom raises many types for damaged files
        raise DataError(f"{path}: the header cannot be read ({error})", "copy it again") from error
    return header


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


def find_slices(folder: pathlib.Path) -> tuple[list[Header], tuple[str, ...]]:
    """Read the headers of the folder's slices, and make notes on its other files.

    Raises DataError if there are no slices, or slices of several series.
    """
    dicom, others = split_files(folder)
    localisers: list[pathlib.Path] = []
    series: dict[str, list[Header]] = {}
    for path in dicom:
        header = read_header(path)
        if "DirectoryRecordSequence" in header:
            others.append(path)
        elif "LOCALIZER" in str(header.get("ImageType")):
            localisers.append(path)
        else:
            series.setdefault(str(header.get("SeriesInstanceUID")), []).append(header)
    if broken := [x for x in others if x.suffix == ".dcm"]:
        raise DataError(f"{broken[0]}: is not a DICOM file", "copy it again, or remove it")
    notes = tuple(
        f"{folder}: {len(paths)} left out as {kind}: {', '.join(x.name for x in paths[:3])}"
        + ", ..." * (len(paths) > 3)
        for kind, paths in (("not a DICOM slice", others), ("localiser", localisers))
        if paths
    )
    if not series:
        found = "; ".join(notes) or f"{folder}: holds no file"
        raise DataError(found, "expected the slices of one CT series; give the folder with them")
    if len(series) > 1:
        lines = [
            f'{name}: {x[0].get("Modality")} "{x[0].get("SeriesDescription", "")}", {len(x)} files'
            for name, x in series.items()
        ]
        problem = f"{folder}: holds {len(series)} series, expected one:\n{list_some(lines)}"
        raise DataError(f"{problem}\nGive a folder that holds one of them alone.")
    return next(iter(series.values())), notes


def check_slice(header: Header) -> None:
    """Raise DataError unless the file is one slice in HU without gantry tilt."""
    for keyword, (values, fix) in EXPECTED.items():
        if (found := header.get(keyword)) not in values:
            raise fault(header, f"{keyword} is {found}, expected {values[0]}", fix)
    if header.get("GantryDetectorTilt"):
        tilt = read_numbers(header, "GantryDetectorTilt", 1)[0]
        if abs(tilt) > MAX_TILT_DEGREES:
            raise fault(header, f"GantryDetectorTilt is {tilt} degrees, expected 0", UNTILT)


def check_alike(headers: Sequence[Header]) -> None:
    """Raise DataError if size, spacing or orientation is invalid, or differs between slices."""
    first = headers[0]
    for keyword, count in SAME_IN_ALL.items():
        lengths = keyword != "ImageOrientationPatient"
        for header in headers:
            numbers, others = (read_numbers(x, keyword, count, lengths) for x in (header, first))
            if np.abs(numbers - others).max() > MAX_DIFFERENCE:
                problem = f"{keyword} is {header[keyword].value}, but {first[keyword].value} in "
                fix = "give a folder with slices of one kind"
                raise fault(header, f"{problem}{path_of(first).name} of the same series", fix)
    for header in headers:  # positions in different frames cannot be compared
        frames = [str(x.get("FrameOfReferenceUID", "")) for x in (header, first)]
        if frames[0] != frames[1]:
            problem = (
                f"FrameOfReferenceUID is {frames[0]}, but {frames[1]} in {path_of(first).name}"
            )
            raise fault(header, problem, "give the slices of one frame of reference")
    axes = read_numbers(first, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 10 * MAX_DIFFERENCE:
        found = f"ImageOrientationPatient is {axes.ravel().tolist()}"
        raise fault(first, f"{found}, expected two unit vectors at a right angle")


def sort_slices(headers: Sequence[Header]) -> tuple[list[Header], np.ndarray]:
    """Sorts the headers along the normal of the slices, and makes the affine of their grid.

    The affine float64[4 4] maps (column, row, file) to RAS mm, as in NIfTI. Raises DataError as
    `measure_step`.
    """
    row, column = read_numbers(headers[0], "ImageOrientationPatient", 6).reshape(2, 3)
    between_rows, between_columns = read_numbers(headers[0], "PixelSpacing", 2)
    normal = np.cross(row, column)
    positions = np.stack([read_numbers(x, "ImagePositionPatient", 3) for x in headers])
    order = np.argsort(positions @ normal, kind="stable")
    headers, positions = [headers[i] for i in order], positions[order]
    if len(headers) > 1:
        max_drift = MAX_OFF_VOXELS * min(between_rows, between_columns)
        step = measure_step(headers, positions - positions[0], normal, max_drift)
    else:
        step = float(read_numbers(headers[0], "SliceThickness", 1, lengths=True)[0])
    axes = row * between_columns, column * between_rows, normal * step, positions[0]
    lps = np.vstack([np.stack(axes, axis=1), [0, 0, 0, 1]])
    return headers, np.diag([-1, -1, 1, 1]) @ lps


def measure_step(
    headers: Sequence[Header], offsets: np.ndarray, normal: np.ndarray, max_drift: float
) -> float:
    """The distance in mm between sorted slices with positions `offsets` float64[n 3] in mm.

    Raises DataError if slices are sheared, duplicated or missing.
    """
    names, along = [path_of(x).name for x in headers], offsets @ normal
    drift = np.linalg.norm(offsets - np.outer(along, normal), axis=1)
    gaps, step = np.diff(along), float(along[-1] / (len(along) - 1))
    usual, near, far = float(np.median(gaps)), int(gaps.argmin()), int(drift.argmax())
    if gaps[near] < MIN_GAP_MM:
        where = f"lies at the same place as {names[near + 1]}, {headers[near].ImagePositionPatient}"
        fix = "remove copies; give a folder for each time point of a series over time"
        raise fault(headers[near], where, fix)
    if drift[far] > max_drift:
        found = f"lies {drift[far]:.3g} mm off the normal through {names[0]}"
        raise fault(headers[far], f"{found}, expected 0: the gantry was tilted", UNTILT)
    if np.abs(along - step * np.arange(len(along))).max() > MAX_OFF_VOXELS * usual:
        i = int(np.abs(gaps - usual).argmax())
        ends = " and ".join(f"{names[j]} at {headers[j].ImagePositionPatient}" for j in (i, i + 1))
        raise DataError(
            f"{path_of(headers[0]).parent}: {ends} are {gaps[i]:.4g} mm apart, expected "
            f"{usual:.4g} mm as elsewhere: a slice between them is missing, or one is too many",
            "export the whole series, evenly spaced",
        )
    return step


def read_hu(header: Header) -> np.ndarray:
    """Read the HU float32[rows columns] of a slice. Raises DataError if they cannot be read."""
    slope, inter = (read_numbers(header, f"Rescale{x}", 1) for x in ("Slope", "Intercept"))
    if not slope:
        raise fault(header, "RescaleSlope is 0, expected another value")
    syntax = UID(header.file_meta.get("TransferSyntaxUID", "missing"))
    try:
        decoder = get_decoder(syntax)
        if decoder.is_available:
            stored = pydicom.dcmread(path_of(header)).pixel_array
            return (stored * slope + inter).astype(np.float32)
        fix = f"pip install what one of these asks for: {'; '.join(decoder.missing_dependencies)}"
    except NotImplementedError:
        fix = "export it uncompressed"
    except Exception as error:  # as in `read_header`
        raise fault(header, f"the pixels cannot be read ({error})", "copy it again") from error
    raise fault(header, f"no decoder for its TransferSyntaxUID, {syntax} ({syntax.name})", fix)
