"""Outputs are checked against inputs, each other and files of the user."""

import os

import pytest

from usam_jax.utils.errors import UsageError
from usam_jax.utils.outputs import Output, check_outputs, is_json_with, starts_with

FIX = "Give another."


def test_check_outputs_accepts_new_files_and_own_ones(tmp_path):
    (tmp_path / "own.json").write_text('{"labels": {}, "more": 1}')
    (tmp_path / "named.nii").write_text("anything")
    (tmp_path / "rows.csv").write_text("case,class\n")
    check_outputs(
        [
            Output(tmp_path / "own.json", "a list", FIX, is_json_with("labels")),
            Output(tmp_path / "named.nii", "a mask", FIX),
            Output(tmp_path / "rows.csv", "a table", FIX, starts_with("case,class")),
            Output(tmp_path / "new" / "x.json", "a list", FIX, is_json_with("labels")),
        ],
        {tmp_path / "ct.nii": "a CT"},
    )


@pytest.mark.parametrize("content", ["{}", "[1]", '{"labels": 1', "", "\udce9"])
def test_check_outputs_keeps_foreign_file(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(os.fsencode(content))
    with pytest.raises(UsageError, match=r"x.json: exists and is not a list .* kept. Give another"):
        check_outputs([Output(path, "a list", FIX, is_json_with("labels"))], {})
    with pytest.raises(UsageError, match="so it is kept"):
        check_outputs([Output(path, "a list", FIX, starts_with("case,"))], {})


def test_check_outputs_names_inputs_twins_and_folders(tmp_path):
    path = tmp_path / "x.nii"
    path.write_text("")
    (tmp_path / "link.nii").symlink_to(path)
    (tmp_path / "again").symlink_to(tmp_path)
    for same in (path, tmp_path / "link.nii", tmp_path / "again" / "x.nii"):
        with pytest.raises(UsageError, match="is a CT, got it as a mask"):
            check_outputs([Output(same, "a mask", FIX)], {path: "a CT"})
    twins = [Output(tmp_path / "y", "a mask", FIX), Output(tmp_path / "again" / "y", "a list", FIX)]
    with pytest.raises(UsageError, match="got one file as a mask and as a list"):
        check_outputs(twins, {})
    with pytest.raises(UsageError, match="got a folder as a mask"):
        check_outputs([Output(tmp_path, "a mask", FIX)], {})
