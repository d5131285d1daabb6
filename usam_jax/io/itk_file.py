"""MetaImage (.mha) and NRRD (.nrrd) files, which SimpleITK reads."""

import functools
import pathlib

import numpy as np
import SimpleITK

from usam_jax.io.volume import Volume, require_usable
from usam_jax.io.volume_files import volume_ending
from usam_jax.utils.errors import DataError, reading

READERS = {".mha": ("MetaImageIO", "MetaImage"), ".nrrd": ("NrrdImageIO", "NRRD")}


def open_itk(path: pathlib.Path) -> Volume:
    """Open an .mha or .nrrd file. Raises DataError if its header is damaged."""
    with reading(path, f"not a readable {format_name(path)} file"):
        reader = make_reader(path)
        reader.ReadImageInformation()
        size, direction = reader.GetSize(), np.array(reader.GetDirection())
        spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
        pixel = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
        has_space = format_name(path) != "NRRD" or reader.HasMetaDataKey("NRRD_space")
    if "complex" in pixel or reader.GetNumberOfComponents() != 1:
        what = pixel if "complex" in pixel else f"{reader.GetNumberOfComponents()} numbers"
        raise DataError(f"{path}: holds {what} for each voxel, expected one real number")
    affine = np.eye(4)
    if len(size) == 3:
        lps = np.column_stack([direction.reshape(3, 3) * spacing, origin])
        affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ lps
    doubt = "" if has_space else "the header has no orientation (space); LPS is assumed"
    read_fn = functools.partial(read_voxels, path)
    volume = Volume(path, size, affine, np.dtype(np.float64), read_fn, (doubt,) if doubt else ())
    return require_usable(volume)


def format_name(path: pathlib.Path) -> str:
    """The name of the file's format."""
    return READERS[(volume_ending(path) or "").lower()][1]


def make_reader(path: pathlib.Path) -> SimpleITK.ImageFileReader:
    """A reader that takes the format from the ending in any letter case."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(READERS[(volume_ending(path) or "").lower()][0])
    reader.SetFileName(str(path))
    return reader


def read_voxels(path: pathlib.Path) -> np.ndarray:
    """Read the voxels [i j k] in the file's dtype. Raises DataError if they are damaged."""
    with reading(path, "the voxels cannot be read"):
        return SimpleITK.GetArrayFromImage(make_reader(path).Execute()).transpose(2, 1, 0)
