"""NIfTI files: voxels as slices, and outputs on the voxels of their source."""

import nibabel
import numpy as np

from usam_jax.io import nifti

AFFINE_LPS = np.diag([-0.9, -1.5, 3.0, 1.0])


def test_read_slices_scales_and_swaps_bytes(tmp_path):
    hu = np.random.default_rng(0).integers(-200, 200, (40, 36, 5)).astype(np.int16)
    image = nibabel.Nifti1Image(hu, AFFINE_LPS)
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    found = nifti.read_slices(tmp_path / "scaled.nii.gz")
    np.testing.assert_array_equal(found, 2.0 * hu.transpose(2, 1, 0) - 1024)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, AFFINE_LPS, header), tmp_path / "big.nii")
    np.testing.assert_array_equal(nifti.read_slices(tmp_path / "big.nii"), hu.transpose(2, 1, 0))


def test_write_uint8_keeps_the_header_of_its_template(tmp_path):
    affine = AFFINE_LPS.copy()
    affine[:3, 3] = (120.0, 80.0, -300.0)
    source = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), affine)
    source.header["descrip"], source.header["cal_max"] = b"a scan", 400
    source.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(source, tmp_path / "ct.nii.gz")
    voxels = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    nifti.write_uint8(tmp_path / "mask.nii.gz", voxels, affine, tmp_path / "ct.nii.gz")
    found = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), voxels)
    np.testing.assert_allclose(found.affine, affine)
    assert found.header["descrip"].item() == b"a scan" and found.header["cal_max"] == 0
    nifti.write_uint8(tmp_path / "new.nii.gz", voxels, affine, slope=0.5)
    found = nibabel.load(tmp_path / "new.nii.gz")
    np.testing.assert_array_equal(found.get_fdata(), voxels / 2)
    np.testing.assert_allclose(found.affine, affine)
    assert found.header.get_xyzt_units()[0] == "mm"


def test_header_description_is_none_for_unreadable_files(tmp_path):
    path = tmp_path / "ct.nii.gz"
    assert nifti.header_description(path) is None
    nifti.write_slices(path, np.zeros((2, 3, 4), np.uint8), AFFINE_LPS, description=b"a scan")
    assert nifti.header_description(path) == b"a scan"
    path.write_bytes(b"damaged")
    assert nifti.header_description(path) is None
