"""Where the voxels of a volume lie, and its axial slices, which all have one orientation.

Slices run from the feet up, rows from front to back, columns from the patient's right to left: the
voxel axes (column, row, slice) are L, P, S, as radiologists view them.
"""

import dataclasses
import itertools

import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)

AXES = ("L", "P", "S")
MAX_OFF_VOXELS = 0.25  # rounded affines are off by less, a flip or a shift by more
Affine = tuple[tuple[float, ...], ...] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shape, axes and affine (to RAS mm) of a file's voxels, and the grid of its slices.

    `shape` (n h w) and `spacing_mm` (z, y, x) are those of the slices.
    """

    file_shape: tuple[int, int, int]
    file_axes: str
    affine: tuple[tuple[float, ...], ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def make_geometry(file_shape: tuple[int, ...], affine: np.ndarray) -> Geometry:
    """The geometry of voxels [i j k] with the affine float64[4 4] to RAS mm."""
    axes = to_slices(affine)[:, 0]
    n, h, w = (int(np.flatnonzero(axes == axis)[0]) for axis in (2, 1, 0))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = file_shape
    return Geometry(
        file_shape=(i, j, k),
        file_axes="".join(aff2axcodes(affine)),
        affine=tuple(tuple(float(x) for x in row) for row in affine),
        shape=(file_shape[n], file_shape[h], file_shape[w]),
        spacing_mm=(float(spacing[n]), float(spacing[h]), float(spacing[w])),
    )


def to_slices(affine: np.ndarray) -> np.ndarray:
    """nibabel's orientation transform from a file's voxel axes to (column, row, slice)."""
    return ornt_transform(io_orientation(affine), axcodes2ornt(AXES))


def as_slices(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxels [i j k] of a file with this affine as slices [n h w]."""
    return apply_orientation(voxels, to_slices(affine)).transpose(2, 1, 0)


def from_slices(values: np.ndarray, affine: Affine) -> np.ndarray:
    """Slices [n h w] back on the voxel axes of a file with this affine: [i j k]."""
    back = ornt_transform(axcodes2ornt(AXES), io_orientation(np.array(affine)))
    return np.ascontiguousarray(apply_orientation(values.transpose(2, 1, 0), back))


def max_shear_degrees(affine: np.ndarray) -> float:
    """The largest deviation from a right angle between two voxel axes, in degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def distance_mm(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between a voxel's positions under two affines."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape), (1,))))
    offsets = corners @ (np.array(a) - np.array(b)).T
    return float(np.linalg.norm(offsets[:, :3], axis=1).max())
