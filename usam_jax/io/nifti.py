"""NIfTI files, read and written as axial slices in the orientation of `io.geometry`."""

import gzip
import pathlib
import zlib
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
from usam_jax.utils.errors import DataError
from usam_jax.utils.files import atomic_write

ENDINGS = (".nii.gz", ".nii")
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    gzip.BadGzipFile,
    nibabel.filebasedimages.ImageFileError,
)


def stem(path: pathlib.PurePath) -> str:
    """The file's name without .nii or .nii.gz, or else without its last suffix."""
    end = next((x for x in ENDINGS if path.name.endswith(x)), path.suffix)
    return path.name.removesuffix(end)


def open_volume(path: pathlib.Path) -> Any:
    """Open a file: its header is read, its voxels are not.

    Raises DataError if it is not a 3-D volume of numbers on a usable grid.
    """
    try:
        path.open("rb").close()  # nibabel calls a file without read permission damaged
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "check the file and its permissions"
        ) from error
    try:
        volume: Any = nibabel.load(path)
        affine, shape, dtype = volume.affine, volume.shape, volume.get_data_dtype()
    except (*READ_ERRORS, AttributeError) as error:
        raise DataError(f"{path}: not a readable NIfTI file ({error})", "copy it again") from error
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
            "export it again",
        )
    return volume


def read_geometry(path: pathlib.Path) -> Geometry:
    """Read the geometry from the header alone. Raises DataError as `open_volume` does."""
    volume = open_volume(path)
    return make_geometry(volume.shape, volume.affine)


def header_warning(path: pathlib.Path) -> str:
    """Why a header's orientation may be wrong, or "" if it is unambiguous."""
    volume = open_volume(path)
    forms = [x for x in (volume.get_sform(coded=True), volume.get_qform(coded=True)) if x[1]]
    if not forms:
        return "the header has no orientation (sform and qform codes are 0); LAS is assumed"
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    off = distance_mm(forms[0][0], forms[-1][0], volume.shape)
    if off <= MAX_OFF_VOXELS * spacing.min():
        return ""
    return f"sform and qform of the header lie {off:.3g} mm apart; the sform is used"


def require_same_grid(image: pathlib.Path, label: pathlib.Path) -> None:
    """Raise DataError if a label's voxels are not those of its image."""
    a, b = read_geometry(image), read_geometry(label)
    fix = "resample it onto the other (nibabel.processing.resample_from_to with order=0)"
    if a.file_shape != b.file_shape:
        raise DataError(
            f"{label}: has the shape {b.file_shape}, but {image} has {a.file_shape}", fix
        )
    off = distance_mm(a.affine, b.affine, a.file_shape)
    if off <= MAX_OFF_VOXELS * min(a.spacing_mm):
        return
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


def read_slices(path: pathlib.Path) -> np.ndarray:
    """Read the voxels as [n h w], in the file's own dtype if it has no scale, else float32.

    Raises DataError if they cannot be read.
    """
    volume = open_volume(path)
    try:
        slope, inter = volume.dataobj.slope, volume.dataobj.inter
        scaled = (slope, inter) not in ((1.0, 0.0), (None, None))
        voxels = volume.get_fdata(dtype=np.float32) if scaled else np.asanyarray(volume.dataobj)
    except READ_ERRORS as error:
        raise DataError(f"{path}: the voxels cannot be read ({error})", "copy it again") from error
    return as_slices(voxels, volume.affine)


def read_labels(path: pathlib.Path, num_classes: int) -> np.ndarray:
    """Read labels uint8[n h w]. Raises DataError for fractions and labels without a class."""
    values = read_slices(path)
    present = np.unique(values)
    odd = [x for x in present.tolist() if not 0 <= x < num_classes or x != int(x)]
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
    """The description in a file's header, or None if the file cannot be read."""
    try:
        volume: Any = nibabel.load(path)
    except READ_ERRORS:
        return None
    return volume.header["descrip"].item()


def write_uint8(
    path: pathlib.Path,
    voxels: np.ndarray,
    affine: Affine,
    template: pathlib.Path | None = None,
    slope: float | None = None,
) -> None:
    """Write voxels uint8[i j k] or uint8[i j k m] that stand for `slope` times their value.

    Type, header and affine are those of the file `template`; without one the header is new and
    has `affine`.
    """
    if template is None:
        image: Any = nibabel.Nifti1Image(voxels, np.array(affine))
        image.header.set_xyzt_units("mm")
    else:
        original = open_volume(template)
        header = original.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the display window of a CT hides a mask
        image = type(original)(voxels, original.affine, header)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    with atomic_write(path) as temporary:
        nibabel.save(image, temporary)
