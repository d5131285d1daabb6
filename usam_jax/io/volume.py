"""An opened volume of any file format, and the checks that all formats share."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from usam_jax.io.geometry import max_shear_degrees
from usam_jax.utils.errors import DataError

MAX_SPACING_DIFFERENCE = 0.01  # relative, between two fields for it; rounding makes less
SAVE_AGAIN = "save it again with one voxel size"
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 25.0
MAX_SHEAR_DEGREES = 0.5  # as by rounded direction cosines; distances change by less than 0.5 %


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume whose header is read, and whose voxels [i j k] `read_fn` reads.

    `affine` float64[4 4] maps voxels to RAS mm. `warnings` are the doubts about the header.
    `header` is nibabel's for a NIfTI file, else None.
    """

    path: pathlib.Path
    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    read_fn: Callable[[], np.ndarray]
    warnings: tuple[str, ...] = ()
    header: Any = None


def size_warning(affine: np.ndarray) -> str:
    """A warning if voxels are much smaller or larger than those of any CT of a patient, else ""."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() >= MIN_SPACING_MM and spacing.max() <= MAX_SPACING_MM:
        return ""
    found = " x ".join(f"{x:.3g}" for x in spacing)
    return f"voxels of {found} mm are not those of a CT of a patient: is the header in mm?"


def require_usable(volume: Volume) -> Volume:
    """The volume. Raises DataError if it is not a 3-D volume of numbers on a usable grid."""
    path, shape, dtype = volume.path, volume.shape, volume.dtype
    if dtype.kind not in "fiub":
        what = {"c": "complex numbers", "V": "colours (RGB)"}.get(dtype.kind, str(dtype))
        raise DataError(f"{path}: holds {what}, expected one real number for each voxel")
    if len(shape) != 3:
        raise DataError(
            f"{path}: has {len(shape)} dimensions {shape}, expected 3",
            "split a series into volumes; drop a last axis of 1 with nibabel.squeeze_image",
        )
    if min(shape) < 1:
        raise DataError(f"{path}: has the shape {shape}, expected positive numbers")
    if not np.isfinite(volume.affine).all():
        found = f"has the affine {volume.affine[:3].tolist()}, expected finite numbers"
        raise DataError(f"{path}: {found}", "export it again")
    matrix = volume.affine[:3, :3]
    with np.errstate(all="ignore"):
        spacing, size = np.linalg.norm(matrix, axis=0), np.linalg.det(matrix)
    if not np.isfinite([*spacing, size]).all() or abs(size) < 1e-9:
        raise DataError(
            f"{path}: has a spacing of {spacing.tolist()} mm, expected positive numbers along "
            "three directions",
            "export it again",
        )
    if (shear := max_shear_degrees(volume.affine)) > MAX_SHEAR_DEGREES:
        raise DataError(
            f"{path}: the grid is sheared, with axes {shear:.3g} degrees off a right angle, "
            "expected 0: was the gantry tilted?",
            "resample it without tilt, as dcm2niix does for its _Eq and _Tilt files",
        )
    return volume
