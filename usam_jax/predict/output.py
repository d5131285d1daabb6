"""Input CTs, and output masks on the same voxels."""

import pathlib
from typing import NamedTuple

import numpy as np

from usam_jax.data.preprocessing import MIN_SIZE
from usam_jax.io import dicom
from usam_jax.io.geometry import Geometry, from_slices
from usam_jax.io.nifti import ENDINGS, read_geometry, read_slices, stem, write_uint8
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, UsageError

AIR_HU = -200.0  # Every CT has voxels below this value (air is -1000).


class Source(NamedTuple):
    """A CT as slices [n h w] in HU, with `series` None if `path` is a NIfTI file."""

    path: pathlib.Path
    hu: np.ndarray
    geometry: Geometry
    series: dicom.Series | None


def read_source(path: pathlib.Path) -> Source:
    """Read a NIfTI file or a folder of DICOM slices.

    Raises DataError if it is neither, holds NaN or infinite values, or has slices of less than
    MIN_SIZE pixels.
    """
    if path.is_dir():
        series = dicom.read_series(path)
        source = Source(path, series.hu, series.geometry, series)
    else:
        source = Source(path, read_slices(path), read_geometry(path), None)
    count, height, width = source.hu.shape
    if not count or min(height, width) < MIN_SIZE:
        raise DataError(
            f"{path}: has {count} slices of {height} x {width} pixels, expected {MIN_SIZE} or more",
            "check the orientation in the header",
        )
    if source.hu.dtype.kind == "f" and not np.isfinite(source.hu).all():
        raise DataError(f"{path}: holds NaN or infinite values", "export it again")
    return source


def values_warning(hu: np.ndarray) -> str:
    """Return a warning if values do not look like HU, else ""."""
    low, high = float(hu.min()), float(hu.max())
    if low < AIR_HU < high:
        return ""
    return f"values from {low:g} to {high:g} do not look like HU (air is -1000); is it a CT?"


def find_inputs(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the volumes at a path by name: the one, or those in a folder.

    Raises DataError if there are none, if two would have the same mask, or if a folder holds both
    DICOM slices and NIfTI files.
    """
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise DataError(f"{path}: expected NAME.nii.gz, NAME.nii or a folder")
        return {stem(path): path}
    if not path.is_dir():
        raise DataError(f"{path}: does not exist, expected a NIfTI file or a folder")
    if dicom.is_series(path):
        volumes = [x for x in path.iterdir() if x.name.endswith(ENDINGS)]
        if volumes:
            raise DataError(
                f"{path}: holds DICOM slices and {volumes[0].name}", "give one of them at a time"
            )
        return {path.resolve().name: path}
    files = [x for x in sorted(path.iterdir()) if not x.name.startswith(".")]
    inputs: dict[str, pathlib.Path] = {}
    for x in files:
        if x.is_dir() and not dicom.is_series(x):
            console.info(f"{x}: skipped, the folder itself has no DICOM slices")
        elif x.is_dir() or x.name.endswith(ENDINGS):
            name = x.name if x.is_dir() else stem(x)
            if name in inputs:
                raise DataError(f"{x} and {inputs[name]} would have the same mask", "rename one")
            inputs[name] = x
    if not inputs:
        raise DataError(f"{path}: holds no NIfTI files (NAME.nii, NAME.nii.gz) and no DICOM slices")
    return inputs


def write_mask(path: pathlib.Path, source: Source, labels: np.ndarray) -> None:
    """Write labels uint8[n h w] on the source's own voxels, axes and affine, with its header."""
    affine = source.geometry.affine
    write_uint8(path, from_slices(labels, affine), affine, template_of(source))


def write_probabilities(path: pathlib.Path, source: Source, values: np.ndarray) -> None:
    """Write probabilities uint8[k n h w] (255: 1.0) as a NIfTI file with the classes last."""
    affine = source.geometry.affine
    volumes = np.stack([from_slices(x, affine) for x in values], axis=-1)
    write_uint8(path, volumes, affine, template_of(source), slope=1 / 255)


def template_of(source: Source) -> pathlib.Path | None:
    """Return the NIfTI file whose header the outputs get, or None for DICOM."""
    return None if source.series else source.path


def require_output(path: pathlib.Path, several: bool) -> None:
    """Raise UsageError if `path` is not a suitable output.

    It must be a folder for `several` volumes, and a .nii.gz, .nii or .dcm file for one.
    """
    if several and (path.is_file() or path.name.endswith((*ENDINGS, ".dcm"))):
        raise UsageError(f"-o: got {path}, expected a folder for the masks of several volumes")
    if not several and path.is_dir():
        raise UsageError(f"-o: got the folder {path}, expected a file for one volume")
    if not several and not path.name.endswith((*ENDINGS, ".dcm")):
        raise UsageError(f"-o: got {path}, expected NAME.nii.gz, NAME.nii or NAME.dcm (DICOM-SEG)")
