"""Every member of a cohort is found or named as left out."""

import os
import shutil

import numpy as np
import pytest
from dicom_files import write_series

from usam_jax.data.case import files_named
from usam_jax.io.cohort import describe_count, find_cohort, find_others
from usam_jax.io.dicom import is_series
from usam_jax.io.nifti import open_volume
from usam_jax.utils.errors import DataError

STORED, AFFINE = np.zeros((4, 4, 3), np.int16), np.diag([-1.0, -1.0, 3.0, 1.0])


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_find_cohort_finds_volumes_at_any_depth_and_letter_case(tmp_path):
    names = ("a.nii.gz", "b.NII.GZ", "c.Nii", "d.mha", "e.NRRD", "p1/ct.nii.gz", "p2/x/ct.nii")
    touch(*(tmp_path / x for x in (*names, "pair.HDR", "pair.img", "caf\udce9.nii")))
    (tmp_path / "study").mkdir()
    write_series(tmp_path / "study" / "series", STORED, AFFINE)
    found = find_cohort(tmp_path, with_series=True)
    expected = {"a", "b", "c", "d", "e", "p1/ct", "p2/x/ct", "pair", "study/series", "caf\udce9"}
    assert found.volumes.keys() == expected and not found.left_out
    assert found.volumes["study/series"] == tmp_path / "study" / "series"


def test_find_cohort_names_all_that_is_left_out(tmp_path):
    touch(
        tmp_path / "a.nii.gz", tmp_path / "notes.txt", tmp_path / ".DS_Store", tmp_path / "LICENSE"
    )
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "patient" / "scan.zip", tmp_path / "only_text" / "report.pdf")
    touch(tmp_path / "b.mhd", tmp_path / "alone.img", tmp_path / "IM0001")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "series").mkdir()
    write_series(tmp_path / "series", STORED, AFFINE)
    touch(tmp_path / "series" / "mask.nii")
    found = find_cohort(tmp_path, with_series=True)
    assert found.volumes.keys() == {"a", "series"}
    names = {"empty", "patient/scan.zip", "only_text", "b.mhd", "alone.img", "IM0001", "broken"}
    assert {x.relative_to(tmp_path).as_posix() for x in found.left_out} == {
        *names,
        "series/mask.nii",
        "loop",
    }
    assert found.left_out[tmp_path / "empty"] == "holds no volume"
    assert "9 files or folders were left out" in describe_count(found.left_out)
    alone = find_cohort(tmp_path, with_series=False)
    assert len([x for x in alone.left_out if x.suffix == ".dcm"]) == 3


def test_find_cohort_skips_the_folder_of_outputs(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "masks" / "a.nii.gz", tmp_path / "b" / "A.nii")
    touch(tmp_path / "masks" / "x.mhd")
    found = find_cohort(tmp_path, with_series=True, skipped=tmp_path / "masks")
    assert found.volumes.keys() == {"a", "b/A"} and not found.left_out


def test_find_cohort_names_twins_and_unreadable_folders(tmp_path):
    touch(tmp_path / "p" / "a.nii", tmp_path / "p" / "a.NII.GZ")
    twins = find_cohort(tmp_path, with_series=True).twins
    assert [[x.name for x in pair] for pair in twins] == [["a.NII.GZ", "a.nii"]]
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        find_cohort(tmp_path / "nowhere", with_series=True)
    if os.geteuid():
        (tmp_path / "p").chmod(0)
        assert "cannot be read" in find_cohort(tmp_path, with_series=True).left_out[tmp_path / "p"]
        (tmp_path / "p").chmod(0o700)


def test_find_cohort_counts_pictures_that_no_volume_explains(tmp_path):
    names = ("a.nii.gz", "a.npz", "a.PNG", "b.npz", "c.png", "d.jpg", "e/f.npz")
    touch(*(tmp_path / x for x in names))
    found = find_cohort(tmp_path, with_series=True)
    left_out = {x.relative_to(tmp_path).as_posix() for x in found.left_out}
    assert left_out == {"b.npz", "c.png", "d.jpg", "e/f.npz"}
    touch(tmp_path / "a_0000.nii.gz", tmp_path / "a_0000.png")
    others = find_others(tmp_path, "_0000.nii.gz")
    assert {x.name for x in others} == {"a.nii.gz", "b.npz", "c.png", "d.jpg", "e"}


def test_find_cohort_reads_a_cd_by_its_slices(tmp_path):
    for name in ("cd", "cohort/p1"):
        (tmp_path / name / "DICOM" / "S1").mkdir(parents=True)
        paths = write_series(tmp_path / name / "DICOM" / "S1", STORED, AFFINE)
        shutil.copy(paths[0], tmp_path / name / "DICOMDIR")
        assert not is_series(tmp_path / name)
    for name, series in (("cd", "DICOM/S1"), ("cohort", "p1/DICOM/S1")):
        found = find_cohort(tmp_path / name, with_series=True)
        assert found.volumes.keys() == {series} and not found.left_out


def test_find_cohort_goes_on_past_unreadable_files(tmp_path):
    touch(tmp_path / "p" / "a.nii")
    (tmp_path / "p" / "b.nii").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "p" / "c.nii")
    for folder, prefix in ((tmp_path, "p/"), (tmp_path / "p", "")):
        assert not is_series(folder)
        found = find_cohort(folder, with_series=True)
        assert found.volumes.keys() == {f"{prefix}{x}" for x in "abc"}
    for name, message in (("b", "is a broken link"), ("c", "is a device or a pipe")):
        with pytest.raises(DataError, match=rf"{name}\.nii: {message}"):
            open_volume(tmp_path / "p" / f"{name}.nii")


def test_find_cohort_skips_no_outputs_above_it(tmp_path):
    touch(tmp_path / "in" / "a.nii")
    found = find_cohort(tmp_path / "in", with_series=True, skipped=tmp_path)
    assert found.volumes.keys() == {"a"}


def test_find_cohort_composes_names(tmp_path):
    decomposed, composed = "Mu\u0308ller", "M\u00fcller"
    touch(tmp_path / f"{decomposed}.nii")
    assert find_cohort(tmp_path, with_series=True).volumes.keys() == {composed}
    assert files_named(tmp_path, ".nii").keys() == {composed}
