"""NIfTI volumes as axial slices that always lie the same way, whatever the file's axes.

Slices run from the feet up, rows from front to back, columns from the patient's right to left: the
voxel axes (column, row, slice) are L, P, S, as a radiologist looks at them.
"""

import dataclasses
import gzip
import itertools
import pathlib
import zlib
from typing import Any

import cv2
import nibabel
import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)

from usam_jax.utils.errors import DataError

AXES = ("L", "P", "S")
MAX_OFF_VOXELS = 0.25  # rounded affines are off by less, a flip or a shift by more
Affine = tuple[tuple[float, ...], ...] | np.ndarray
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    gzip.BadGzipFile,
    nibabel.filebasedimages.ImageFileError,
)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a file's voxels lie: its own shape, axes and affine, and those of the slices.

    `shape` (n h w) and `spacing_mm` (z, y, x) are those of the slices.
    """

    file_shape: tuple[int, int, int]
    file_axes: str
    affine: tuple[tuple[float, ...], ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def open_volume(path: pathlib.Path) -> Any:
    """The file with its header read and its voxels not yet.

    Raises DataError for what is no 3-D volume of numbers with a usable grid.
    """
    try:
        path.open("rb").close()  # nibabel takes a file that it may not read for a damaged one
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "give yourself permission"
        ) from error
    try:
        volume: Any = nibabel.load(path)
        affine, shape, dtype = volume.affine, volume.shape, volume.get_data_dtype()
    except (*READ_ERRORS, AttributeError) as error:
        raise DataError(f"{path}: not a readable NIfTI file ({error})", "copy it anew") from error
    if dtype.fields is not None:
        raise DataError(f"{path}: holds colours (RGB), expected one number for each voxel")
    if len(shape) != 3:
        raise DataError(
            f"{path}: has {len(shape)} dimensions {shape}, expected 3",
            "split a series into volumes; drop a last axis of 1 with nibabel.squeeze_image",
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or spacing.min() <= 0
        or abs(np.linalg.det(affine[:3, :3])) < 1e-9
    ):
        raise DataError(
            f"{path}: has a spacing of {spacing.tolist()} mm, expected positive numbers",
            "export it anew",
        )
    return volume


def read_geometry(path: pathlib.Path) -> Geometry:
    """The geometry, from the header alone. Raises DataError as `open_volume` does."""
    volume = open_volume(path)
    transform = to_slices(volume.affine)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    n, h, w = (int(np.flatnonzero(transform[:, 0] == axis)[0]) for axis in (2, 1, 0))
    i, j, k = volume.shape
    return Geometry(
        file_shape=(i, j, k),
        file_axes="".join(aff2axcodes(volume.affine)),
        affine=tuple(tuple(float(x) for x in row) for row in volume.affine),
        shape=(volume.shape[n], volume.shape[h], volume.shape[w]),
        spacing_mm=(float(spacing[n]), float(spacing[h]), float(spacing[w])),
    )


def distance_mm(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """How far at most a voxel of a volume lies from itself under two affines."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape), (1,))))
    offsets = corners @ (np.array(a) - np.array(b)).T
    return float(np.linalg.norm(offsets[:, :3], axis=1).max())


def header_warning(path: pathlib.Path) -> str:
    """Why a header may mislead about where its voxels lie; nothing where it is clear."""
    volume = open_volume(path)
    forms = [x for x in (volume.get_sform(coded=True), volume.get_qform(coded=True)) if x[1]]
    if not forms:
        return "the header tells no orientation (sform and qform codes are 0); LAS is taken"
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    off = distance_mm(forms[0][0], forms[-1][0], volume.shape)
    if off <= MAX_OFF_VOXELS * spacing.min():
        return ""
    return f"sform and qform of the header lie {off:.3g} mm apart; the sform is taken"


def to_slices(affine: np.ndarray) -> np.ndarray:
    """The reorientation from a file's voxel axes to (column, row, slice)."""
    return ornt_transform(io_orientation(affine), axcodes2ornt(AXES))


def from_slices(values: np.ndarray, affine: Affine) -> np.ndarray:
    """Slices [n h w] back on the voxel axes of a file with this affine."""
    back = ornt_transform(axcodes2ornt(AXES), io_orientation(np.array(affine)))
    return np.ascontiguousarray(apply_orientation(values.transpose(2, 1, 0), back))


def read_slices(path: pathlib.Path) -> np.ndarray:
    """The voxels as [n h w], of the file's own type where it has no scale, else float32.

    Raises DataError where they cannot be read.
    """
    volume = open_volume(path)
    try:
        slope, inter = volume.dataobj.slope, volume.dataobj.inter
        scaled = (slope, inter) not in ((1.0, 0.0), (None, None))
        voxels = volume.get_fdata(dtype=np.float32) if scaled else np.asanyarray(volume.dataobj)
    except READ_ERRORS as error:
        raise DataError(f"{path}: the voxels cannot be read ({error})", "copy it anew") from error
    return apply_orientation(voxels, to_slices(volume.affine)).transpose(2, 1, 0)


def read_labels(path: pathlib.Path, num_classes: int) -> np.ndarray:
    """Labels uint8[n h w]. Raises DataError for fractions and labels beyond the classes."""
    values = read_slices(path)
    present = np.unique(values)
    odd = [x for x in present.tolist() if not 0 <= x < num_classes or x != int(x)]
    if odd:
        raise DataError(
            f"{path}: holds the labels {odd[:5]}, expected whole numbers from 0 to "
            f"{num_classes - 1}",
            "mend the labels, or name all classes",
        )
    return values.astype(np.uint8)


def window_hu(image: np.ndarray, level: float, width: float) -> np.ndarray:
    """HU to grey float32 in [0, 1]; values outside the window are clipped."""
    grey = (image.astype(np.float32) - (level - width / 2)) / width
    return np.clip(grey, 0.0, 1.0)


def fitted_shape(
    shape: tuple[int, ...], size: int, pixel_mm: tuple[float, float]
) -> tuple[int, int, float]:
    """Rows and columns that a slice [h w] takes up in [size size], and their pixels' side in mm."""
    height, width = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale)), 1 / scale


def fit_square(
    image: np.ndarray, size: int, pixel_mm: tuple[float, float], labels: bool
) -> np.ndarray:
    """A slice [h w] resampled to isotropic pixels and centred in [size size], its whole field kept.

    `pixel_mm` is (y, x). Labels by the nearest pixel; images by area where pixels grow, else
    linearly. What the slice does not cover is 0: air, background.
    """
    h, w, _ = fitted_shape(image.shape, size, pixel_mm)
    if (h, w) != image.shape:
        shrinks = h * w < image.size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        how = cv2.INTER_NEAREST_EXACT if labels else how
        image = cv2.resize(image, (w, h), interpolation=how)
    top, left = (size - h) // 2, (size - w) // 2
    return np.pad(image, ((top, size - h - top), (left, size - w - left)))


def unfit_square(
    labels: np.ndarray, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> np.ndarray:
    """Labels [size size] of a slice that `fit_square` made, back on its own pixels: [h w].

    By the nearest pixel.
    """
    size = labels.shape[0]
    h, w, _ = fitted_shape(shape, size, pixel_mm)
    top, left = (size - h) // 2, (size - w) // 2
    inside = np.ascontiguousarray(labels[top : top + h, left : left + w])
    return cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
