"""Headers of volumes: doubtful ones are refused or warned about, and two files turn alike."""

import gzip
import os
import pathlib
import re

import nibabel
import numpy as np
import pytest
import SimpleITK

from usam_jax.data.volumes import load_volume
from usam_jax.evaluation import score_folder
from usam_jax.io import nifti
from usam_jax.utils.errors import DataError

AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 5)).astype(np.int16)


def save(path: pathlib.Path, voxels=VOXELS, affine=AFFINE, sform=1, qform=1, **fields) -> None:
    """Save a volume with these codes, and then change fields of its header in the file."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    header = np.ndarray((), nibabel.nifti1.header_dtype, data)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("codes", "fields", "message"),
    [
        ((0, 1), {"pixdim": [1, 0.8, 0, 3, 0, 0, 0, 0]}, r"pixdim of the header is \[0\.8, 0\.0"),
        ((0, 1), {"pixdim": [1, 0.8, -0.8, 3, 0, 0, 0, 0]}, r"pixdim .* expected positive numbers"),
        ((1, 0), {"pixdim": [1, 1, 1, 1, 0, 0, 0, 0]}, r"pixdim .* but voxels are \[0\.8, 0\.8, 3"),
        (
            (1, 0),
            {"srow_x": [-1, 0, 0, 0], "srow_y": [0, -1, 0, 0], "srow_z": [0, 0, 1, 0]},
            r"but voxels are \[1\.0, 1\.0, 1\.0\] mm apart by its affine",
        ),
        ((1, 1), {"xyzt_units": 1}, "the unit of its header is metres, expected mm"),
        ((0, 1), {"quatern_b": 3.0}, "not a readable NIfTI file"),
        ((1, 1), {"scl_slope": 1, "scl_inter": np.nan}, "not a readable NIfTI file"),
        ((1, 1), {"vox_offset": 100}, "not a readable NIfTI file"),
        ((1, 1), {"vox_offset": 0}, r"vox_offset is 0\.0, within the header"),
        ((1, 1), {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "more than the file can hold"),
        ((1, 1), {"datatype": 32, "bitpix": 64}, "holds complex numbers, expected one real"),
        ((1, 0), {"srow_y": [0, -0.8, 1.0, 0]}, "the grid is sheared, with axes 18.4 degrees off"),
    ],
)
def test_read_slices_refuses_doubtful_headers(tmp_path, codes, fields, message):
    path = tmp_path / "ct.nii"
    save(path, VOXELS, AFFINE, *codes, **fields)
    with pytest.raises(DataError, match=message) as caught:
        nifti.read_slices(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "fields", "message"),
    [
        ((1, 1), {}, ""),
        ((1, 0), {"pixdim": [0, 0.8, 0.8, 3, 0, 0, 0, 0]}, ""),
        ((1, 0), {"pixdim": [1, 0, 0.8, 3, 0, 0, 0, 0]}, "pixdim .* the sform is used"),
        ((1, 1), {"quatern_b": 3.0}, "the qform of the header is invalid .* the sform is used"),
        ((1, 1), {"qoffset_x": 9.0}, "sform and qform of the header lie 9 mm apart"),
        ((9, 1), {}, "sform_code of the header is 9, read as 0"),
        ((0, 0), {}, "the header has no orientation"),
    ],
)
def test_header_warning_names_each_repair(tmp_path, codes, fields, message):
    path = tmp_path / "ct.nii"
    save(path, VOXELS, AFFINE, 1, 1, **{"sform_code": codes[0], "qform_code": codes[1]} | fields)
    found = nifti.header_warning(path)
    assert bool(found) == bool(message)
    np.testing.assert_allclose(nifti.read_geometry(path).spacing_mm, (3, 0.8, 0.8), atol=1e-6)
    np.testing.assert_array_equal(np.sort(nifti.read_slices(path), None), np.sort(VOXELS, None))
    assert re.search(message, found)


def test_two_files_of_one_grid_turn_alike(tmp_path):
    turn = np.deg2rad(45)  # the nearest axes of such voxels hang on the last digit
    affine = AFFINE.copy()
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]] @ AFFINE[:2, :2]
    labels = (VOXELS > 0).astype(np.uint8)
    paths = [tmp_path / "sform.nii", tmp_path / "qform.nii"]
    save(paths[0], labels, affine, 1, 0)
    save(paths[1], labels, affine, 0, 1)
    assert len({nifti.read_geometry(x).file_axes for x in paths}) == 2
    for one, other in (paths, paths[::-1]):
        found, faults = score_folder.read_pair(one, other, 2)
        assert not faults
        np.testing.assert_array_equal(*found)
        image, label = load_volume(one, other, 2, 0.5, 1.0)
        np.testing.assert_array_equal(image, label)


def test_score_reports_doubtful_headers_by_file(tmp_path):
    for name in ("ref", "pred"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "c1.nii", (VOXELS > 0).astype(np.uint8))
    save(tmp_path / "pred" / "c1.nii", (VOXELS > 0).astype(np.uint8), quatern_b=3.0)
    summary = score_folder.score(tmp_path / "pred", tmp_path / "ref", ("background", "a"))
    assert summary["mean"]["1"]["Dice"] == 1
    (warning,) = summary["warnings"]
    assert warning.startswith(f"{tmp_path / 'pred' / 'c1.nii'}: the qform of the header is invalid")


@pytest.mark.parametrize("ending", [".mha", ".NRRD"])
def test_itk_volumes_equal_nifti(tmp_path, ending):
    affine = AFFINE.copy()
    affine[:3, :3] = nibabel.eulerangles.euler2mat(0.2, 0, -0.1) @ affine[:3, :3]
    affine[:3, 3] = (100.0, 80.0, -300.0)
    save(tmp_path / "ct.nii", VOXELS, affine)
    image = SimpleITK.ReadImage(str(tmp_path / "ct.nii"))
    SimpleITK.WriteImage(image, str(tmp_path / f"ct{ending.lower()}"))
    path = (tmp_path / f"ct{ending.lower()}").rename(tmp_path / f"case{ending}")
    found, expected = nifti.read_geometry(path), nifti.read_geometry(tmp_path / "ct.nii")
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert found.file_shape == expected.file_shape
    np.testing.assert_array_equal(nifti.read_slices(path), nifti.read_slices(tmp_path / "ct.nii"))
    nifti.require_same_grid(tmp_path / "ct.nii", path)
    assert nifti.header_warning(path) == ""
    voxels = (VOXELS > 0).astype(np.uint8)
    nifti.write_uint8(tmp_path / "mask.nii.gz", voxels, found.affine, path)
    nifti.require_same_grid(path, tmp_path / "mask.nii.gz")


def test_itk_volumes_that_cannot_be_used_are_refused(tmp_path):
    colours = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    flat = SimpleITK.GetImageFromArray(np.zeros((4, 5), np.uint8))
    for image, message in ((colours, "expected one real number"), (flat, "has 2 dimensions")):
        SimpleITK.WriteImage(image, str(tmp_path / "ct.mha"))
        with pytest.raises(DataError, match=message):
            nifti.read_geometry(tmp_path / "ct.mha")
    (tmp_path / "ct.nrrd").write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\n")
    with pytest.raises(DataError, match=r"ct\.nrrd: not a readable NRRD file"):
        nifti.read_geometry(tmp_path / "ct.nrrd")
    with (tmp_path / "ct.nrrd").open("ab") as file:
        file.write(b"data file: other.raw\n\n")
    with pytest.raises(DataError, match="its voxels are in another file"):
        nifti.read_geometry(tmp_path / "ct.nrrd")


def test_nifti_pairs_are_read_in_any_letter_case(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(VOXELS, AFFINE), tmp_path / "ct.hdr")
    os.rename(tmp_path / "ct.img", tmp_path / "ct.IMG")
    for name in ("ct.hdr", "ct.IMG"):
        np.testing.assert_array_equal(nifti.read_slices(tmp_path / name), VOXELS.transpose(2, 1, 0))
    mask = tmp_path / "mask.nii.gz"
    nifti.write_uint8(mask, np.ones(VOXELS.shape, np.uint8), AFFINE, tmp_path / "ct.hdr")
    assert gzip.decompress(mask.read_bytes())[344:347] == b"n+1"
    (tmp_path / "ct.IMG").unlink()
    with pytest.raises(DataError, match=r"ct\.hdr: its other file, ct\.img, is not there"):
        nifti.read_geometry(tmp_path / "ct.hdr")


def test_open_volume_names_a_broken_link(tmp_path):
    (tmp_path / "ct.nii.gz").symlink_to(tmp_path / "moved.nii.gz")
    with pytest.raises(DataError, match=r"ct\.nii\.gz: is a broken link to .*moved\.nii\.gz"):
        nifti.open_volume(tmp_path / "ct.nii.gz")


NRRD = (
    "NRRD0004",
    "type: short",
    "dimension: 3",
    "sizes: 20 18 5",
    "endian: little",
    "encoding: raw",
)
MHA = ("ObjectType = Image", "NDims = 3", "DimSize = 20 18 5", "ElementType = MET_SHORT")
SPACE = "space: left-posterior-superior"
AXES = "space directions: (0.8,0,0) (0,0.8,0) (0,0,3)"
SIZE = "ElementSpacing = 0.8 0.8 3"


def write_text_header(path: pathlib.Path, fields) -> None:
    """Write VOXELS as NRRD or MetaImage with more fields in the header."""
    if path.suffix == ".nrrd":
        lines = [*NRRD, *fields, "", ""]
    else:
        lines = [*MHA, *fields, "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join(lines).encode() + VOXELS.tobytes("F"))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("a.nrrd", (), "the spacing of its header is missing, expected positive"),
        ("a.nrrd", (SPACE,), "the spacing of its header is missing, expected positive"),
        ("a.nrrd", ("spacings: 1 nan 1",), "the spacing of its header is 1 nan 1"),
        ("a.nrrd", (SPACE, AXES, 'space units: "cm" "cm" "cm"'), "the unit of its header is cm"),
        ("a.mha", (), "the spacing of its header is missing, expected positive"),
        ("a.mha", ("ElementSpacing = 1 1 -3",), "the spacing of its header is 1 1 -3"),
        ("a.mha", (SIZE, "DistanceUnits = um"), "the unit of its header is um"),
        ("a.mha", (SIZE, "TransformMatrix = 2 0 0 0 2 0 0 0 2"), r"lengths \[2\.0, 2\.0, 2\.0\]"),
        ("a.mha", (SIZE, "HeaderSize = 100"), "headersize of the header is 100, expected 0"),
        ("a.mha", (SIZE, "ElementToIntensityFunctionSlope = 2"), "slope of the header is 2"),
        ("a.mha", (SIZE, "BinaryData = False"), r"the voxels cannot be read \(File cannot be read"),
    ],
)
def test_itk_headers_that_are_uncertain_are_refused(tmp_path, name, fields, message):
    write_text_header(tmp_path / name, fields)
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        nifti.read_slices(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "fields", "axes", "warning"),
    [
        ("a.nrrd", (SPACE, AXES), "LPS", ""),
        ("a.nrrd", ("space: RAS", AXES), "RAS", ""),
        ("a.nrrd", ("space: scanner-xyz", AXES), "LPS", r"no orientation \(space: scanner-xyz\)"),
        ("a.nrrd", ("space dimension: 3", AXES), "LPS", r"no orientation \(space: none\)"),
        ("a.nrrd", ("spacings: 0.8 0.8 3",), "LPS", r"no orientation \(space: none\)"),
        ("a.mha", (SIZE, "ElementToIntensityFunctionSlope = 1.0"), "LPS", ""),
        ("a.mha", ("ElementSize = 0.08 0.08 0.3",), "LPS", "0.08 x 0.08 x 0.3 mm are not those of"),
    ],
)
def test_itk_headers_are_read_or_doubted(tmp_path, name, fields, axes, warning):
    write_text_header(tmp_path / name, fields)
    assert nifti.read_geometry(tmp_path / name).file_axes == axes
    found = nifti.header_warning(tmp_path / name)
    assert bool(found) == bool(warning) and re.search(warning, found)


def test_open_volume_names_affines_that_are_not_finite(tmp_path):
    save(tmp_path / "ct.nii", srow_x=[-0.8, 0, 0, np.inf])
    with pytest.raises(DataError, match=r"has the affine \[\[-0\.8.*inf\].*, expected finite"):
        nifti.open_volume(tmp_path / "ct.nii")
