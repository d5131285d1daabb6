"""A folder of DICOM slices as a volume.

A slice's place comes from ImagePositionPatient and ImageOrientationPatient alone: file names,
InstanceNumber, SliceThickness and PatientPosition are too often wrong. The grid of a series has the
axes (column, row, file), with the files sorted along the normal of the slices.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from usam_jax.io.dicom_files import (
    DICOMDIR,
    Header,
    fault,
    find_slices,
    list_files,
    path_of,
    read_file,
    read_numbers,
    series_uid,
    starts_as_dicom,
)
from usam_jax.io.geometry import MAX_OFF_VOXELS, Geometry, as_slices, make_geometry
from usam_jax.utils.errors import DataError, reading

SAME_IN_ALL = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}
MAX_DIFFERENCE = 1e-4  # between files; some scanners write these values with few digits
MIN_GAP_MM = 0.01
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
    may run from the head down. `uid` is the SeriesInstanceUID. `notes` list the files of the folder
    that were left out, and `unknown` those of them that may be damaged slices.
    """

    hu: np.ndarray
    geometry: Geometry
    files: tuple[pathlib.Path, ...]
    uid: str
    notes: tuple[str, ...]
    unknown: tuple[pathlib.Path, ...] = ()


def is_series(folder: pathlib.Path) -> bool:
    """Whether the folder itself holds DICOM files other than the index of a medium (DICOMDIR).

    Files that cannot be read do not count. Raises DataError if the folder cannot be read.
    """
    if not folder.is_dir():
        return False
    names = (x for x in list_files(folder) if x.name.upper() != DICOMDIR)
    return any(starts_as_dicom(x) for x in names if x.is_file())


def read_series(folder: pathlib.Path, chosen: str | None = None) -> Series:
    """Read the only CT series in a folder, or the one that is `chosen` as by `choose_series`.

    The thickness of a single slice is its SliceThickness. Raises DataError unless the folder holds
    all slices of one series, in HU, on one regular grid.
    """
    with reading(folder, "not a readable series"):
        headers, notes, unknown = find_slices(folder, chosen)
        for header in headers:
            check_slice(header)
        check_alike(headers)
        headers, affine = sort_slices(headers)
        frames = np.empty((len(headers), headers[0].Rows, headers[0].Columns), np.float32)
        for frame, header in zip(frames, headers, strict=True):
            frame[:] = read_hu(header)
        voxels = frames.transpose(2, 1, 0)
        hu, geometry = as_slices(voxels, affine), make_geometry(voxels.shape, affine)
        files, uid = tuple(path_of(x) for x in headers), series_uid(headers[0])
        return Series(hu, geometry, files, uid, notes, unknown)


def check_slice(header: Header) -> None:
    """Raise DataError unless the file is one slice in HU.

    GantryDetectorTilt does not count: a tilted gantry shows in the positions of the slices, and
    the tag remains in series that a workstation has resampled.
    """
    for keyword, (values, fix) in EXPECTED.items():
        if (found := header.get(keyword)) not in values:
            raise fault(header, f"{keyword} is {found}, expected {values[0]}", fix)


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
            stored = read_file(path_of(header), with_pixels=True).pixel_array
            return (stored * slope + inter).astype(np.float32)
        fix = f"pip install what one of these asks for: {'; '.join(decoder.missing_dependencies)}"
    except NotImplementedError:
        fix = "export it uncompressed"
    except Exception as error:  # as in `read_header`
        raise fault(header, f"the pixels cannot be read ({error})", "copy it again") from error
    raise fault(header, f"no decoder for its TransferSyntaxUID, {syntax} ({syntax.name})", fix)
