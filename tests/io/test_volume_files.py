"""Names of volumes, with endings in any letter case."""

import pathlib

import pytest

from usam_jax.io.volume_files import is_pair_data, volume_ending, volume_name


@pytest.mark.parametrize(
    ("name", "ending", "stem"),
    [
        ("ct.nii.gz", ".nii.gz", "ct"),
        ("CT.1.NII.GZ", ".NII.GZ", "CT.1"),
        ("ct.Nii", ".Nii", "ct"),
        ("ct.MHA", ".MHA", "ct"),
        ("ct.nrrd", ".nrrd", "ct"),
        ("ct.HDR", ".HDR", "ct"),
        ("ct.img", ".img", "ct"),
        ("mask.dcm", None, "mask"),
        ("._ct.nii.gz", None, "._ct.nii"),
        (".nii.gz", None, ".nii"),
        ("nii", None, "nii"),
    ],
)
def test_volume_ending_and_name(name, ending, stem):
    path = pathlib.Path("folder") / name
    assert volume_ending(path) == ending
    assert volume_name(path) == stem
    assert is_pair_data(path) == (name == "ct.img")
