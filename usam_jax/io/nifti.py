"""Volumes of all file formats as axial slices as in `io.geometry`, and NIfTI files.

Read: .nii, .nii.gz, .hdr with .img, .mha and .nrrd, in any letter case. Written: NIfTI.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform

from usam_jax.io.geometry import (
    AXES,
    MAX_OFF_VOXELS,
    Affine,
    Geometry,
    as_slices,
    distance_mm,
    make_geometry,
)
from usam_jax.io.itk_file import open_itk
from usam_jax.io.nifti_file import IMAGES, open_nifti, read_raw_header
from usam_jax.io.volume import Volume, size_warning
from usam_jax.io.volume_files import EXPECTED, ITK_ENDINGS, NIFTI_ENDINGS, volume_ending
from usam_jax.utils.errors import DataError, reading, require_file, unreadable
from usam_jax.utils.files import atomic_write

ENDINGS = NIFTI_ENDINGS


def open_volume(path: pathlib.Path) -> Volume:
    """Open a file: its header is read, its voxels are not.

    Raises DataError if it is not a 3-D volume of numbers on a usable grid.
    """
    if (ending := volume_ending(path)) is None:
        raise DataError(f"{path}: is not a volume by its name, expected {EXPECTED}")
    require_file(path)
    try:
        path.open("rb").close()  # libraries call a file without read permission damaged
    except OSError as error:
        raise unreadable(path, error) from error
    volume = open_itk(path) if ending.lower() in ITK_ENDINGS else open_nifti(path)
    doubts = (*volume.warnings, size_warning(volume.affine))
    return dataclasses.replace(volume, warnings=tuple(filter(None, doubts)))


def read_geometry(path: pathlib.Path) -> Geometry:
    """Read the geometry from the header alone. Raises DataError as `open_volume` does."""
    volume = open_volume(path)
    return make_geometry(volume.shape, volume.affine)


def header_warning(path: pathlib.Path) -> str:
    """Why the header of a file may be wrong, or "" if there is no doubt."""
    return "; ".join(open_volume(path).warnings)


def header_warnings(paths: Iterable[pathlib.Path]) -> list[str]:
    """The warnings of several files, each with the name of its file."""
    found = [(path, header_warning(path)) for path in paths]
    return [f"{path}: {text}" for path, text in found if text]


def require_same_grid(image: pathlib.Path, label: pathlib.Path) -> Geometry:
    """The geometry of an image. Raises DataError if a label's voxels are not those of the image.

    Two grids are the same within a quarter of a voxel, so both files are to be reoriented by the
    affine that is returned: each by its own could turn them differently.
    """
    return require_grid_of(read_geometry(image), image, label)


def require_grid_of(a: Geometry, image: pathlib.Path, label: pathlib.Path) -> Geometry:
    """Return the geometry `a` of an image, which may be a DICOM series.

    Raises DataError as `require_same_grid` does.
    """
    b = read_geometry(label)
    fix = "resample it onto the other (nibabel.processing.resample_from_to with order=0)"
    if a.file_shape != b.file_shape:
        raise DataError(
            f"{label}: has the shape {b.file_shape}, but {image} has {a.file_shape}", fix
        )
    off = distance_mm(a.affine, b.affine, a.file_shape)
    if off <= MAX_OFF_VOXELS * min(a.spacing_mm):
        return a
    differences = [
        f"{what} {y} instead of {x}"
        for what, x, y in (
            ("axes", a.file_axes, b.file_axes),
            ("a spacing of", round_mm(a.spacing_mm), round_mm(b.spacing_mm)),
        )
        if x != y
    ]
    differences.append(f"voxels up to {off:.3g} mm off")
    raise DataError(f"{label}: lies elsewhere in space than {image}: {', '.join(differences)}", fix)


def round_mm(spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    """The spacing with three decimals, for messages."""
    return tuple(round(x, 3) for x in spacing_mm)


def read_slices(path: pathlib.Path, affine: Affine | None = None) -> np.ndarray:
    """Read the voxels as [n h w], in the file's own dtype if it has no scale, else float32.

    `affine` is that of another file whose grid was accepted as the same: both files are then
    reoriented alike, even if rounding puts them on two sides of 45 degrees. Raises DataError if the
    voxels cannot be read.
    """
    volume = open_volume(path)
    return as_slices(volume.read_fn(), np.array(volume.affine if affine is None else affine))


def read_labels(path: pathlib.Path, num_classes: int, affine: Affine | None = None) -> np.ndarray:
    """Read labels uint8[n h w], reoriented as by `read_slices`.

    Raises DataError for fractions and labels without a class.
    """
    values = read_slices(path, affine)
    present = np.unique(values)
    odd = [x for x in present.tolist() if not (0 <= x < num_classes and x == int(x))]
    if odd:
        raise DataError(
            f"{path}: holds the labels {odd[:5]}, expected whole numbers from 0 to "
            f"{num_classes - 1}",
            "correct the labels, or name all classes",
        )
    return values.astype(np.uint8)


def write_slices(
    path: pathlib.Path,
    slices: np.ndarray,
    affine: np.ndarray,
    axes: tuple[str, ...] = AXES,
    description: bytes = b"",
) -> None:
    """Write slices [n h w] with the voxel axes `axes`, and `description` in the header.

    `affine` float64[4 4] maps (column, row, slice) to RAS mm.
    """
    turn = ornt_transform(axcodes2ornt(AXES), axcodes2ornt(axes))
    volume = nibabel.Nifti1Image(slices.transpose(2, 1, 0), affine).as_reoriented(turn)
    volume.header["descrip"] = description
    with atomic_write(path) as temporary:
        nibabel.save(volume, temporary)


def header_description(path: pathlib.Path) -> bytes | None:
    """The description in the header of a NIfTI file, or None if the file cannot be read."""
    try:
        with reading(path):
            return read_raw_header(path, is_pair=False)["descrip"].item()
    except DataError:
        return None


def write_uint8(
    path: pathlib.Path,
    voxels: np.ndarray,
    affine: Affine,
    template: pathlib.Path | None = None,
    slope: float | None = None,
) -> None:
    """Write voxels uint8[i j k] or uint8[i j k m] that stand for `slope` times their value.

    Type, header and affine are those of the NIfTI file `template`; without one, or if it has
    another format, the header is new and has `affine`.
    """
    original = template and open_volume(template)
    if not original or original.header is None:
        image: Any = nibabel.Nifti1Image(voxels, np.array(affine))
        image.header.set_xyzt_units("mm")
    else:
        header = original.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the display window of a CT hides a mask
        image = IMAGES[type(header)](voxels, original.affine, header)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    with atomic_write(path) as temporary:
        nibabel.save(image, temporary)
