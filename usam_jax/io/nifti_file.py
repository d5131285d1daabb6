"""NIfTI files (.nii, .nii.gz, .hdr with .img), opened with their headers checked.

nibabel repairs some headers without a word. Here a header whose voxel size is uncertain is refused,
and every other repair becomes a warning.
"""

import functools
import logging
import math
import pathlib
from typing import Any

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from usam_jax.io.geometry import MAX_OFF_VOXELS, distance_mm
from usam_jax.io.gzip_file import ending_warning, max_content_bytes, open_stream, read_to_end
from usam_jax.io.volume import (
    MAX_SPACING_DIFFERENCE,
    SAVE_AGAIN,
    Volume,
    require_usable,
)
from usam_jax.io.volume_files import PAIR_ENDINGS, volume_ending, volume_name
from usam_jax.utils.errors import DataError, reading

LOGGER = logging.getLogger("usam_jax.nifti_header")
LOGGER.disabled = True  # repairs become warnings that name the file
DAMAGED = "not a readable NIfTI file"
HEADERS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
PAIR_HEADERS = (nibabel.nifti1.Nifti1PairHeader, nibabel.nifti2.Nifti2PairHeader)
IMAGES = {
    **dict(zip(HEADERS, (nibabel.Nifti1Image, nibabel.Nifti2Image), strict=True)),
    **dict(zip(PAIR_HEADERS, (nibabel.Nifti1Pair, nibabel.Nifti2Pair), strict=True)),
}


def open_nifti(path: pathlib.Path) -> Volume:
    """Open a NIfTI file. Raises DataError if its header is damaged or contradicts itself."""
    header_path, data_path = find_files(path)
    with reading(path, DAMAGED):
        raw = read_raw_header(header_path, is_pair=header_path != data_path)
        if raw.is_single and raw["vox_offset"] < raw.single_vox_offset:  # nibabel accepts 0
            raise ValueError(f"vox_offset is {raw['vox_offset']}, within the header")
        header = raw.copy()
        header.check_fix(LOGGER, error_level=40)  # nibabel's limit between repairs and errors
        affine = header.get_best_affine().astype(np.float64)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        header.get_slope_inter()  # raises for numbers that make no sense
    volume = Volume(
        path,
        tuple(int(x) for x in shape),
        affine,
        dtype,
        functools.partial(read_voxels, path, data_path, header),
        header=header,
    )
    require_usable(volume)
    with reading(path, DAMAGED):
        repaired = (*find_repairs(raw, header), *check_spacing(path, raw, affine))
        doubts = (*repaired, orientation_warning(header, affine), ending_warning(data_path))
    return Volume(**vars(volume) | {"warnings": tuple(filter(None, doubts))})


def find_files(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The files with header and voxels: twice the same, or an .hdr/.img pair in any letter case.

    Raises DataError if the other file of a pair does not exist.
    """
    if (volume_ending(path) or "").lower() not in PAIR_ENDINGS:
        return path, path
    found: list[pathlib.Path] = []
    for ending in PAIR_ENDINGS:
        name = f"{volume_name(path)}{ending}"
        same = [x for x in path.parent.iterdir() if x.name.lower() == name.lower()]
        if not same:
            raise DataError(f"{path}: its other file, {name}, is not there", "copy it, too")
        found.append(path if path in same else same[0])
    return found[0], found[1]


def read_raw_header(path: pathlib.Path, is_pair: bool) -> Any:
    """Read a header as it is in the file, without nibabel's repairs. Raises ValueError."""
    with open_stream(path) as stream:
        start = stream.read(nibabel.Nifti2Header.sizeof_hdr)
        found = [i for i, x in enumerate(HEADERS) if x.may_contain_header(start)]
        if not found:
            raise ValueError("it has no header of NIfTI-1 or NIfTI-2")
        stream.seek(0)
        header = (PAIR_HEADERS if is_pair else HEADERS)[found[0]]
        return header.from_fileobj(stream, check=False)


def read_voxels(path: pathlib.Path, data_path: pathlib.Path, header: Any) -> np.ndarray:
    """Read the voxels [i j k], as float32 if the header scales them, else in the file's dtype.

    Raises DataError if they are damaged.
    """
    with reading(path, "the voxels cannot be read"):
        needed = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        if needed > max_content_bytes(data_path):  # before memory is reserved for them
            raise OSError(f"the header asks for {needed} bytes, more than the file can hold")
        scaled = header.get_slope_inter() not in ((1.0, 0.0), (None, None))
        # Values that a scale makes infinite are refused by who needs finite ones.
        with open_stream(data_path) as stream, np.errstate(over="ignore", invalid="ignore"):
            proxy = ArrayProxy(stream, header, mmap=False)
            voxels = proxy.get_unscaled() if not scaled else proxy.__array__(np.float32)
            read_to_end(stream)
    return np.asarray(voxels)


def find_repairs(raw: Any, header: Any) -> list[str]:
    """Sentences for the fields that nibabel changed in a header."""
    texts = []
    for name in raw:
        before, after = raw[name], header[name]
        if name == "pixdim" and before[0] == 0:  # by the standard: the same as 1
            before = np.concatenate([after[:1], before[1:]])
        if not np.array_equal(before, after):
            texts.append(f"{name} of the header is {before.tolist()}, read as {after.tolist()}")
    return texts


def check_spacing(path: pathlib.Path, raw: Any, affine: np.ndarray) -> list[str]:
    """A warning if pixdim is invalid, but not needed.

    Raises DataError if it is needed, if it is not the spacing of the sform, or not in mm.
    """
    if (unit := int(raw["xyzt_units"]) & 7) in (1, 3):  # the lowest bits: metres, mm, micrometres
        unit_name = {1: "metres", 3: "micrometres"}[unit]
        raise DataError(f"{path}: the unit of its header is {unit_name}, expected mm", SAVE_AGAIN)
    pixdim, has_sform = raw["pixdim"][1:4].astype(np.float64), raw["sform_code"] > 0
    found = f"pixdim of the header is {pixdim.round(4).tolist()} mm"
    if not (np.isfinite(pixdim).all() and pixdim.min() > 0):
        if not has_sform:
            raise DataError(f"{path}: {found}, expected positive numbers", SAVE_AGAIN)
        return [f"{found}; the sform is used"]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(pixdim / spacing - 1).max() > MAX_SPACING_DIFFERENCE:
        raise DataError(
            f"{path}: {found}, but voxels are {spacing.round(4).tolist()} mm apart by its affine, "
            "expected the same numbers",
            SAVE_AGAIN,
        )
    return []


def orientation_warning(header: Any, affine: np.ndarray) -> str:
    """Why a header's orientation may be wrong, or "" if it is unambiguous."""
    sform, qform_code = header.get_sform(coded=True), int(header["qform_code"])
    if not sform[1] and not qform_code:
        return "the header has no orientation (sform and qform codes are 0); LAS is assumed"
    if not (sform[1] and qform_code):
        return ""
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError) as error:
        return f"the qform of the header is invalid ({error}); the sform is used"
    off = distance_mm(sform[0], qform, header.get_data_shape())
    if off <= MAX_OFF_VOXELS * np.linalg.norm(affine[:3, :3], axis=0).min():
        return ""
    return f"sform and qform of the header lie {off:.3g} mm apart; the sform is used"
