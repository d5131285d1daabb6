"""Checksums of compressed files are compared, and files are read by their content."""

import gzip
import pathlib
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK

from usam_jax.io import nifti
from usam_jax.io.numpy_file import read_npz
from usam_jax.utils.errors import DataError

AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 5)).astype(np.int16)


def save(path: pathlib.Path) -> bytes:
    """Save the volume and return the bytes of the NIfTI file before compression."""
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), path)
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def stored_gzip(content: bytes) -> bytearray:
    """Gzip without compression, in which a changed byte damages nothing but the checksum."""
    packer = zlib.compressobj(0, zlib.DEFLATED, 31)
    return bytearray(packer.compress(content) + packer.flush())


def test_read_slices_refuses_a_wrong_gzip_checksum(tmp_path):
    path = tmp_path / "ct.nii.gz"
    data = stored_gzip(save(path))
    data[1000] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"ct\.nii\.gz: the voxels cannot be read \(CRC check fail"):
        nifti.read_slices(path)
    data[1000] ^= 4
    path.write_bytes(data[:-6])
    with pytest.raises(DataError, match=r"ct\.nii\.gz: the voxels cannot be read"):
        nifti.read_slices(path)


def test_read_slices_allows_bytes_after_the_voxels(tmp_path):
    path = tmp_path / "ct.nii.gz"
    content = save(path)
    for data in (
        gzip.compress(content + b"more"),
        gzip.compress(content) + b"more",
        content + b".",
    ):
        path.write_bytes(data)
        np.testing.assert_array_equal(nifti.read_slices(path), VOXELS.transpose(2, 1, 0))


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.NII"])
def test_read_slices_goes_by_content_and_warns(tmp_path, name):
    path = tmp_path / name
    content = save(tmp_path / "other.nii")
    path.write_bytes(content if name.endswith("gz") else gzip.compress(content))
    np.testing.assert_array_equal(nifti.read_slices(path), VOXELS.transpose(2, 1, 0))
    assert "compressed with gzip, unlike its name says" in nifti.header_warning(path)


def test_read_npz_compares_checksums(tmp_path):
    path = tmp_path / "slice.npz"
    np.savez(path, image=VOXELS, label=VOXELS)
    assert all(np.array_equal(x, VOXELS) for x in read_npz(path, ("image", "label")))
    data = bytearray(path.read_bytes())
    data[1000] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"slice\.npz: not a readable .npz \(Bad CRC-32"):
        read_npz(path, ("image", "label"))
    with zipfile.ZipFile(path, "w") as archive:  # bytes after the array hide the checksum's place
        archive.writestr("image.npy", (tmp_path / "none").name * 9)
    with pytest.raises(DataError, match=r"slice\.npz"):
        read_npz(path, ("image",))


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_read_slices_of_itk_refuses_damaged_voxels(tmp_path, ending):
    path = tmp_path / f"ct{ending}"
    image = SimpleITK.GetImageFromArray(VOXELS.transpose(2, 1, 0))
    for compressed in (True, False):
        SimpleITK.WriteImage(image, str(path), useCompression=compressed)
        whole = path.read_bytes()
        np.testing.assert_array_equal(nifti.read_slices(path), VOXELS.transpose(2, 1, 0))
        path.write_bytes(whole[:-9])
        with pytest.raises(DataError, match=r"the voxels cannot be read \(found \d+ bytes"):
            nifti.read_slices(path)
        if compressed:
            damaged = bytearray(whole)
            damaged[-200] ^= 16
            path.write_bytes(damaged)
            with pytest.raises(DataError, match="the voxels cannot be read"):
                nifti.read_slices(path)
