"""`usam_jax.predict` on folders as people have them, with a stand-in network."""

import json
import signal

import nibabel
import numpy as np
import pytest
from absl.testing import flagsaver
from dicom_files import write_series
from ml_collections import ConfigDict

from usam_jax.data.preprocessing import Preparation
from usam_jax.predict import __main__ as command
from usam_jax.predict import output, volume
from usam_jax.utils import cli
from usam_jax.utils.errors import DataError

AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])
HU = np.full((40, 40, 3), -1000, np.int16)
HU[10:20, 10:20] = 60


class Bright:
    """Stands in for a network that finds bright pixels."""

    classes = ("background", "bright")
    step, promptable, interactive, slices, dims = 7, True, False, 1, 2
    preparation = Preparation(40, 40.0, 400.0, "clip", 0.0, False)
    config = ConfigDict({"prompts": {"kind": "mixed"}})

    def encode(self, images):
        return images

    def decode(self, images, _given):
        labels = (images > 120).astype(np.uint8)
        return labels, np.eye(2, dtype=np.float32)[labels]

    def require_promptable(self, _flags):
        pass


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setattr(command, "load_network", lambda _workdir: Bright())


def run(*arguments) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver():
            given = ["predict", *map(str, arguments), "--checkpoint=run"]
            return cli.run(command.main, given, needs_config=False)
    finally:
        signal.signal(signal.SIGTERM, handler)


def write_ct(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(HU, AFFINE), path)
    return path


def test_predict_counts_and_reports_what_is_left_out(tmp_path, capsys):
    for name in ("a.nii.gz", "p1/ct.nii.gz"):
        write_ct(tmp_path / "in" / name)
    (tmp_path / "in" / "study").mkdir()
    write_series(tmp_path / "in" / "study" / "series", HU, AFFINE)
    write_ct(tmp_path / "b.nii").rename(tmp_path / "in" / "B.NII")
    (tmp_path / "in" / "c.mhd").write_text("")
    (tmp_path / "in" / "p2").mkdir()
    out, report = tmp_path / "in" / "masks", tmp_path / "run.json"
    for options in ((), ("--skip_existing",)):
        assert run("-i", tmp_path / "in", "-o", out, f"--report={report}", *options) == 4
        assert "2 files or folders were left out" in capsys.readouterr().err
    found = json.loads(report.read_text())
    assert {x["status"] for x in found["volumes"].values()} == {"there already"}
    assert set(found["left_out"]) == {str(tmp_path / "in" / x) for x in ("c.mhd", "p2")}
    masks = {x.relative_to(out).as_posix() for x in out.rglob("*.nii.gz")}
    assert masks == {f"{x}.nii.gz" for x in ("a", "p1/ct", "study/series", "B")}


def test_predict_names_masks_of_nnunet_by_case(tmp_path):
    write_ct(tmp_path / "imagesTs" / "x_0000.nii.gz")
    write_ct(tmp_path / "other" / "y_0000.nii.gz")
    (tmp_path / "data").mkdir()
    (tmp_path / "imagesTs").rename(tmp_path / "data" / "imagesTs")
    (tmp_path / "data" / "dataset.json").write_text("{}")
    assert run("-i", tmp_path / "data" / "imagesTs", "-o", tmp_path / "m") == 0
    assert run("-i", tmp_path / "other", "-o", tmp_path / "m") == 0
    assert {x.name for x in (tmp_path / "m").glob("*.nii.gz")} == {"x.nii.gz", "y_0000.nii.gz"}


POINTS = '{"space": "voxel", "points": [{"at": [12, 12, 1]}]}'
OVERWRITTEN = {
    "class list, points": (("-i", "ct.nii", "-o", "case.nii.gz", "--points=case.json"), "points"),
    "class list, sidecar": (("-i", "ct.nii", "-o", "new/../bids.nii"), "so it is kept"),
    "probabilities": (("-i", "ct.nii", "-o", "m.nii", "--save-probabilities"), "so it is kept"),
    "report, class list": (("-i", "ct.nii", "-o", "n.nii", "--report=n.json"), "got one file as"),
    "report, foreign": (("-i", "ct.nii", "-o", "n.nii", "--report=bids.json"), "so it is kept"),
    "report, points": (
        ("-i", "ct.nii", "-o", "n.nii", "--points=case.json", "--report=case.json"),
        "is the points file",
    ),
    "labels of the user": (("-i", "cts", "-o", "labels"), "so it is kept"),
    "folder of the CTs": (("-i", "cts", "-o", "cts"), "got the folder of the input"),
    "slice of a series": (("-i", "series", "-o", "series/x.dcm"), "got the folder of the input"),
    "half of a pair": (("-i", "pair.hdr", "-o", "pair.nii"), ""),
}


@pytest.mark.parametrize("case", OVERWRITTEN)
def test_predict_replaces_no_file_of_the_user(tmp_path, case, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, text = OVERWRITTEN[case]
    write_ct(tmp_path / "ct.nii")
    write_ct(tmp_path / "pair.hdr")
    for folder in ("cts", "labels"):
        write_ct(tmp_path / folder / "case.nii.gz")
    write_series(tmp_path / "series", HU, AFFINE)
    (tmp_path / "case.json").write_text(POINTS)
    (tmp_path / "bids.json").write_text('{"EchoTime": 1}')
    (tmp_path / "m_probabilities.nii.gz").write_bytes(b"of the user")
    (tmp_path / "new").mkdir()
    before = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
    code = run(*arguments)
    assert code == (2 if text else 0) and text in capsys.readouterr().err
    assert {x: x.read_bytes() for x in before} == before
    assert code == 0 or set(before) == {x for x in tmp_path.rglob("*") if x.is_file()}


def test_predict_replaces_its_own_outputs(tmp_path):
    write_ct(tmp_path / "cts" / "case.nii")
    options = ("--save-probabilities", f"--report={tmp_path / 'r.json'}")
    for _ in range(2):
        assert run("-i", tmp_path / "cts", "-o", tmp_path / "m", *options) == 0
        single = ("-i", tmp_path / "cts" / "case.nii", "-o", tmp_path / "one.nii.gz")
        assert run(*single, *options) == 0


@pytest.mark.parametrize("error", [DataError("no SEG"), OSError("share is gone")])
def test_predict_keeps_mask_as_nifti_if_a_seg_fails(tmp_path, monkeypatch, capsys, error):
    write_series(tmp_path / "ct", HU, AFFINE)

    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(output, "write_seg", fail)
    assert run("-i", tmp_path / "ct", "-o", tmp_path / "m.dcm") == 3
    assert f"The mask is kept as {tmp_path / 'm.nii.gz'}" in capsys.readouterr().err
    assert np.asarray(nibabel.load(tmp_path / "m.nii.gz").dataobj).sum() == 300
    assert not (tmp_path / "m.dcm").exists()


def test_predict_checks_a_seg_before_predicting(tmp_path, monkeypatch, capsys):
    write_series(tmp_path / "ct", HU, AFFINE, FrameOfReferenceUID=None)
    monkeypatch.setattr(volume, "predict_slices", None)
    assert run("-i", tmp_path / "ct", "-o", tmp_path / "m.dcm") == 3
    assert "FrameOfReferenceUID (0020,0052) is missing" in capsys.readouterr().err


def test_predict_counts_damaged_slices_without_ending(tmp_path, capsys):
    for path in write_series(tmp_path / "ct", HU, AFFINE):
        path.rename(path.with_suffix(""))
    last = tmp_path / "ct" / "IM9"
    last.write_bytes(bytes(500))
    report = tmp_path / "r.json"
    for options in ((), ("--skip_existing",)):
        arguments = ("-i", tmp_path / "ct", "-o", tmp_path / "m.nii", f"--report={report}")
        assert run(*arguments, *options) == 4
        assert f"{last}: lies among slices, but is not DICOM" in capsys.readouterr().err
        assert str(last) in json.loads(report.read_text())["left_out"]


def test_predict_warns_of_a_series_in_two_folders(tmp_path, capsys):
    paths = write_series(tmp_path / "a", HU, AFFINE)
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "in" / "a")
    (tmp_path / "in" / "a" / paths[2].name).rename(tmp_path / "in" / "b" / paths[2].name)
    write_series(tmp_path / "in" / "c", HU, AFFINE, series="other")
    report = tmp_path / "r.json"
    assert run("-i", tmp_path / "in", "-o", tmp_path / "m", f"--report={report}") == 0
    found = json.loads(report.read_text())["volumes"]
    warned = [x for x, entry in found.items() if "same series" in "".join(entry["warnings"])]
    assert warned == [str(tmp_path / "in" / "b")]
    assert f"same series as those in {tmp_path / 'in' / 'a'}" in capsys.readouterr().err


def test_predict_chooses_a_series(tmp_path, capsys):
    for name in ("portal", "native"):
        write_series(tmp_path / "ct", HU, AFFINE, series=name)
    write_ct(tmp_path / "v.nii")
    arguments = ("-i", tmp_path / "ct", "-o", tmp_path / "m.nii")
    assert run(*arguments) == 3
    assert "holds 2 series, expected one" in capsys.readouterr().err
    assert run(*arguments, "--series=none") == 3
    assert run(*arguments, "--series=portal") == 0
    assert run("-i", tmp_path / "v.nii", "-o", tmp_path / "n.nii", "--series=portal") == 2
    assert "--series: got no DICOM series" in capsys.readouterr().err


@pytest.mark.parametrize("volumes", [[], {"x": 7}, 5])
def test_predict_keeps_a_report_of_another_form(tmp_path, volumes, capsys):
    report = tmp_path / "r.json"
    report.write_text(json.dumps({"checkpoint": "x", "volumes": volumes}))
    arguments = ("-i", write_ct(tmp_path / "ct.nii"), "-o", tmp_path / "m.nii")
    assert run(*arguments, f"--report={report}", "--skip_existing") == 2
    assert "is not a report that this program wrote" in capsys.readouterr().err


def test_predict_refuses_a_mask_without_a_name(tmp_path, capsys):
    assert run("-i", write_ct(tmp_path / "ct.nii"), "-o", tmp_path / ".nii.gz") == 2
    assert "expected NAME.nii.gz" in capsys.readouterr().err


def test_predict_writes_masks_above_their_cts(tmp_path):
    write_ct(tmp_path / "in" / "sub" / "c.nii")
    assert run("-i", tmp_path / "in" / "sub", "-o", tmp_path / "in") == 0
    assert (tmp_path / "in" / "c.nii.gz").is_file()
