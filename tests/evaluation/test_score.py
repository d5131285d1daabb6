"""Score and compare folders of predictions through the command-line tools."""

import csv
import io
import json
import signal

import nibabel
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import REAL_DATA
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy import ndimage, stats

from tools import compare, score
from usam_jax.evaluation import comparison
from usam_jax.evaluation.case_metrics import Scoring, score_case
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.summary import patient_numbers
from usam_jax.io.volume_files import volume_name
from usam_jax.utils import cli, console

CLASSES = ("background", "rectum", "tumour")
SPACING = (3.0, 0.75, 1.25)  # mm; exact in float32, as files have it
GIVEN = f"--classes={','.join(CLASSES)}"
NAMES = [f"case_{i}" for i in range(1, 7)]


def call(tool, *arguments) -> int:
    """Run a tool and return its exit code.

    Flags and the signal handler are restored.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver():
            return cli.run(tool.main, [tool.__name__, *map(str, arguments)], needs_config=False)
    finally:
        signal.signal(signal.SIGTERM, handler)


def write(path, labels, axes="LPS", spacing=SPACING, shift_mm=0.0, dtype=np.uint8):
    """Write labels [n h w] as a file whose voxel axes are `axes`."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = (100.0 + shift_mm, 80.0, -300.0)
    volume = nibabel.Nifti1Image(labels.transpose(2, 1, 0).astype(dtype), affine)
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes))
    path.parent.mkdir(exist_ok=True)
    nibabel.save(volume.as_reoriented(turn), path)


def make_labels(seed: int) -> np.ndarray:
    """A rectum that contains a tumour, except in every third case."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((8, 20, 24), np.uint8)
    y, x = rng.integers(3, 6, 2)
    labels[1:7, y : y + 9, x : x + 10] = 1
    if seed % 3:
        labels[2:5, y + 2 : y + 6, x + 1 : x + 7] = 2
    return labels


def predict(labels: np.ndarray, seed: int) -> np.ndarray:
    """The labels shifted by some voxels and without one row, so that FN exceed FP."""
    moved = np.roll(labels, np.random.default_rng(seed).integers(-1, 3, 3), (0, 1, 2))
    moved[:, 9] = 0
    return moved


@pytest.fixture
def folders(tmp_path):
    """Predictions and their references in the layout of nnU-Net."""
    for i, name in enumerate(NAMES):
        write(tmp_path / "labels" / f"{name}.nii.gz", make_labels(i))
        write(tmp_path / "a" / f"{name}.nii.gz", predict(make_labels(i), i))
        write(tmp_path / "b" / f"{name}.nii", predict(make_labels(i), i + 50))
    (tmp_path / "a" / "plans.json").write_text("{}")
    return tmp_path


def read_summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("policy", ["worst", "skip"])
def test_score_writes_the_metrics_of_each_case(folders, policy, capsys):
    options = (GIVEN, "--tolerance=1.5", f"--policy={policy}", f"--out={folders / 'out'}")
    assert call(score, folders / "a", folders / "labels", *options) == 0
    found = read_summary(folders / "out")
    scoring = Scoring(CLASSES, (1.5, 1.5), policy)
    for i, (name, case) in enumerate(zip(NAMES, found["metric_per_case"], strict=True)):
        truth = make_labels(i)
        expected = score_case(truth, predict(truth, i), SPACING, scoring)
        assert case["case"] == name
        assert case["reference_file"] == str(folders / "labels" / f"{name}.nii.gz")
        assert case["prediction_file"] == str(folders / "a" / f"{name}.nii.gz")
        for number, scores in enumerate(expected, start=1):
            assert case["metrics"][str(number)] == scores
    assert found["cases"]["tumour"]["lesions"]["total"] == 4
    assert (folders / "out" / "per_case.csv").is_file()
    printed = capsys.readouterr().out
    assert f"policy {policy}: " in printed and "lesions found" in printed and "1.5 mm" in printed


@pytest.mark.parametrize("axes", ["RAS", "PIR", "ASL"])
def test_score_is_independent_of_the_voxel_axes(tmp_path, axes):
    truth = make_labels(1)
    for code in ("LPS", axes):
        write(tmp_path / f"labels{code}" / "x.nii.gz", truth, code)
        write(tmp_path / f"pred{code}" / "x.nii.gz", predict(truth, 1), code)
        assert call(score, tmp_path / f"pred{code}", tmp_path / f"labels{code}", GIVEN) == 0
    found, expected = (read_summary(tmp_path / f"pred{x}")["cases"] for x in (axes, "LPS"))
    for name in CLASSES[1:]:
        assert found[name]["ok"] == 1
        for metric in ("Dice", "HD95", "NSD"):
            assert found[name][metric]["mean"] == pytest.approx(expected[name][metric]["mean"])


LABELS = make_labels(1)
FAULTS = {
    "other axes": (lambda x: write(x, LABELS, "PIR"), "has the shape"),
    "axes turned": (lambda x: write(x, LABELS, "RAS"), "axes RAS instead of LPS"),
    "other shape": (lambda x: write(x, LABELS[:-1]), "has the shape"),
    "shifted by a voxel": (lambda x: write(x, LABELS, shift_mm=1.25), "1.25 mm off"),
    "other spacing": (lambda x: write(x, LABELS, spacing=(3, 0.75, 1.5)), "spacing of"),
    "unknown label": (lambda x: write(x, LABELS + 1), "holds the labels [3]"),
    "fractions": (lambda x: write(x, LABELS / 2, dtype=np.float32), "holds the labels [0.5]"),
    "not a volume": (lambda x: x.write_bytes(b"nothing"), "not a readable NIfTI file"),
    "cut off": (lambda x: x.write_bytes(x.read_bytes()[:90]), "copy it again"),
    "missing": (lambda x: x.unlink(), "has no prediction"),
    "without reference": (lambda x: write(x.with_name("more.nii.gz"), LABELS), "has no reference"),
    "twice": (lambda x: write(x.with_name("case_2.nii"), LABELS), "holds 1 cases twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_score_names_faulty_prediction_and_writes_nothing(folders, fault, capsys):
    spoil, text = FAULTS[fault]
    spoil(folders / "a" / "case_2.nii.gz")
    before = sorted(folders.rglob("*"))
    assert call(score, folders / "a", folders / "labels", GIVEN) == 3
    printed = capsys.readouterr().err
    assert text in printed and ("case_2" in printed or "more" in printed)
    assert "config." not in printed and "resample_from_to(label" not in printed
    assert sorted(folders.rglob("*")) == before


def test_score_lists_all_faults_at_once(folders, capsys):
    for name, fault in (
        ("case_2", "other shape"),
        ("case_5", "unknown label"),
        ("case_6", "missing"),
    ):
        FAULTS[fault][0](folders / "a" / f"{name}.nii.gz")
    write(folders / "labels" / "case_3.nii.gz", make_labels(2) * 2)
    assert call(score, folders / "a", folders / "labels", GIVEN) == 3
    printed = capsys.readouterr().err
    assert "found 4 faults" in printed
    assert all(f"{name}.nii.gz: has" in printed for name in ("case_2", "case_6"))
    assert all(f"{name}.nii.gz: holds" in printed for name in ("case_3", "case_5"))


def test_score_names_folder_without_volumes(folders, capsys):
    (folders / "empty").mkdir()
    assert call(score, folders / "empty", folders / "labels", GIVEN) == 3
    assert "holds no label volumes" in capsys.readouterr().err
    assert call(score, folders / "a", folders / "nowhere", GIVEN) == 3
    assert "nowhere: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a", "labels", "."])
def test_score_reads_classes_from_dataset_json(folders, place):
    write_description(folders / place, CLASSES)
    assert call(score, folders / "a", folders / "labels") == 0
    assert read_summary(folders / "a")["classes"] == list(CLASSES)


def write_description(folder, classes):
    labels = {name: i for i, name in enumerate(classes)}
    content = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_score_names_dataset_json_files_that_disagree(folders, capsys):
    write_description(folders / "a", CLASSES)
    write_description(folders, ("background", "tumour", "rectum"))
    assert call(score, folders / "a", folders / "labels") == 2
    assert "name different classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "give --classes"),
        (["--classes=rectum"], "--classes: got"),
        (["--classes=a,b,b"], "--classes: got"),
        (["--classes=background,mean,tumour"], "expected no class named mean"),
        (["--classes=background,a b,a_b"], "--classes: got"),
        ([GIVEN, "more"], "expected PREDICTIONS REFERENCES"),
        ([GIVEN, "--policy=none"], "policy"),
        ([GIVEN, "--tolerance=-1"], "tolerance"),
        ([GIVEN, f"--out={__file__}"], "cannot be written"),
        ([GIVEN, "--out={folders}/broken"], "broken: cannot be written"),
    ],
)
def test_score_rejects_wrong_usage(folders, options, text, capsys):
    (folders / "broken").symlink_to(folders / "nowhere")
    options = [x.format(folders=folders) for x in options]
    assert call(score, folders / "a", folders / "labels", *options) == 2
    assert text in capsys.readouterr().err


def nnunet_summary(scores) -> dict:
    """A summary of nnU-Net v2 from {case: {class number: (n_ref, n_pred, TP)}}."""
    cases = []
    for name, metrics in scores.items():
        found = {}
        for number, (n_ref, n_pred, tp) in metrics.items():
            some = n_ref + n_pred
            found[number] = {
                "Dice": 2 * tp / some if some else float("nan"),
                "IoU": tp / (some - tp) if some else float("nan"),
                "TP": tp,
                "FP": n_pred - tp,
                "FN": n_ref - tp,
                "TN": 9,
                "n_pred": n_pred,
                "n_ref": n_ref,
            }
        files = {"prediction_file": f"p/{name}.nii.gz", "reference_file": f"r/{name}.nii.gz"}
        cases.append({"metrics": found, **files})
    return {"foreground_mean": {}, "mean": {}, "metric_per_case": cases}


def test_score_keeps_summary_of_another_program(folders, capsys):
    path = folders / "a" / "summary.json"
    path.write_text(json.dumps(nnunet_summary({"case_1": {"1": (0, 0, 0)}})))
    before = path.read_bytes()
    assert call(score, folders / "a", folders / "labels", GIVEN) == 2
    assert "--out" in capsys.readouterr().err
    assert path.read_bytes() == before
    out = folders / "out"
    for _ in range(2):  # a summary of this package is overwritten
        assert call(score, folders / "a", folders / "labels", GIVEN, f"--out={out}") == 0


@pytest.mark.parametrize("metric", ["Dice", "HD95"])
def test_compare_matches_statistics_of_raw_differences(folders, metric, capsys):
    options = (GIVEN, f"--metric={metric}", f"--out={folders / 'out'}")
    reference = f"--reference={folders / 'labels'}"
    assert call(compare, folders / "a", folders / "b", reference, *options) == 0
    found = json.loads((folders / "out" / "comparison.json").read_text())
    scoring = Scoring(CLASSES, (2.0, 2.0))
    truths = [make_labels(i) for i in range(len(NAMES))]
    sides = [
        [score_case(x, predict(x, i + offset), SPACING, scoring) for i, x in enumerate(truths)]
        for offset in (0, 50)
    ]
    for number, name in enumerate(CLASSES[1:]):
        a, b = (np.array([x[number][metric] for x in side], float) for side in sides)
        defined = np.isfinite(a) & np.isfinite(b)  # every third case has no tumour
        difference = (b - a)[defined]
        statistics = found["classes"][name]
        assert (statistics["n"], statistics["left_out"]) == (defined.sum(), (~defined).sum())
        assert statistics["difference"] == pytest.approx(difference.mean(), rel=1e-6)
        assert statistics["median_difference"] == pytest.approx(np.median(difference), rel=1e-6)
        assert statistics["p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
        low, high = statistics["ci95"]
        assert low <= difference.mean() <= high
        better = np.sign(difference) * (-1 if metric == "HD95" else 1)
        counts = [(better == x).sum() for x in (1, 0, -1)]
        assert [statistics[x] for x in ("b_better", "equal", "a_better")] == counts
    sizes = [abs(x["difference"]) for x in found["most_changed"]]
    assert sizes == sorted(sizes, reverse=True) and 5 < len(sizes) <= 10
    rows = list(csv.DictReader((folders / "out" / "comparison.csv").read_text().splitlines()))
    assert len(rows) == len(NAMES) * 2 and rows[0]["metric"] == metric
    assert (folders / "out" / "comparison.png").stat().st_size > 10_000
    assert f"{metric} ({'mm' if metric == 'HD95' else '%'})" in capsys.readouterr().out


def test_compare_of_a_folder_with_itself(folders, capsys):
    assert call(score, folders / "a", folders / "labels", GIVEN) == 0
    out = f"--out={folders / 'out'}"
    assert call(compare, folders / "a", folders / "a", out) == 0
    found = json.loads((folders / "out" / "comparison.json").read_text())
    assert not found["most_changed"]
    for statistics in found["classes"].values():
        assert statistics["difference"] == 0 and statistics["ci95"] == [0, 0]
        assert statistics["p"] is None and statistics["equal"] == statistics["n"] > 0
    assert "warning" not in capsys.readouterr().err


def test_holm_correction_of_a_worked_example():
    found = comparison.holm_correction([0.01, None, 0.04, 0.03, 0.005])
    assert found == [pytest.approx(0.03), None, *[pytest.approx(0.06)] * 2, pytest.approx(0.02)]


def nnunet_folder(folder, scores):
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(nnunet_summary(scores)))
    return folder


def test_compare_reads_nnunet_summary_with_nan_as_absent(tmp_path, capsys):
    a = {"x_1": {"1": (10, 10, 5)}, "x_2": {"1": (0, 0, 0)}, "x_10": {"1": (0, 0, 0)}}
    b = {"x_1": {"1": (10, 10, 8)}, "x_2": {"1": (0, 5, 0)}, "x_10": {"1": (0, 0, 0)}}
    one, other = nnunet_folder(tmp_path / "a", a), nnunet_folder(tmp_path / "b", b)
    (one / "dataset.json").write_text('{"labels": {"background": 0, "tumour": 1}}')
    assert call(compare, one, other, f"--out={tmp_path / 'out'}") == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    statistics = found["classes"]["tumour"]
    assert (statistics["n"], statistics["left_out"], statistics["one_sided"]) == (1, 2, 1)
    assert statistics["difference"] == pytest.approx(0.3) and statistics["ci95"] is None
    statuses = [(x["case"], x["a_status"], x["b_status"]) for x in found["cases"]]
    assert statuses == [
        ("x_1", "ok", "ok"),
        ("x_2", "absent", "false_alarm"),
        ("x_10", "absent", "absent"),
    ]
    assert (
        "note: 1 of those left out have a value in only one of A and B" in capsys.readouterr().out
    )
    assert call(compare, one, other, "--metric=HD95") == 2


def test_compare_of_own_and_nnunet_summary_of_same_files(folders):
    assert call(score, folders / "a", folders / "labels", GIVEN) == 0
    ours = read_summary(folders / "a")["metric_per_case"]
    fields = ("n_ref", "n_pred", "TP")
    theirs = {
        x["case"]: {n: tuple(y[f] for f in fields) for n, y in x["metrics"].items()} for x in ours
    }
    other = nnunet_folder(folders / "nnunet", theirs)
    out = folders / "out"
    assert call(compare, folders / "a", other, "--metric=IoU", f"--out={out}") == 0
    found = json.loads((out / "comparison.json").read_text())
    assert {x["difference"] for x in found["cases"]} == {0.0, None}
    assert list(found["classes"]) == ["rectum", "tumour", "mean"]


MISLEADING = {
    "empty_policy": lambda x: x["empty_policy"].update(name="skip"),
    "nsd_tolerance": lambda x: x["nsd_tolerance"].update(tumour=5.0),
    "distance_unit": lambda x: x.update(distance_unit="pixels"),
    "classes differs": lambda x: x.update(classes=["background", "tumour", "rectum"]),
    "schema_version": lambda x: x.update(schema_version=1),
    "1 cases of": lambda x: x["metric_per_case"].pop(2),
    "cannot be used": lambda x: x.pop("metric_per_case"),
    "6 cases of 5 names": lambda x: x["metric_per_case"][1].update(case="case_1"),
}


@pytest.mark.parametrize("text", MISLEADING)
def test_compare_rejects_incomparable_evaluations(folders, text, capsys):
    other = change_summary(folders, MISLEADING[text])
    assert call(compare, folders / "a", other) == 3
    printed = capsys.readouterr().err
    assert text in printed
    assert "case_3" in printed or text != "1 cases of"


def change_summary(folders, change):
    """Score folder a and write a changed copy of its summary to another folder."""
    assert call(score, folders / "a", folders / "labels", GIVEN) == 0
    summary = read_summary(folders / "a")
    change(summary)
    (folders / "other").mkdir()
    (folders / "other" / "summary.json").write_text(json.dumps(summary))
    return folders / "other"


def test_compare_warns_of_other_prompts_and_shared_patients(folders, capsys):
    def change(summary):
        summary["prompts"] = "box from the ground truth"
        for case in summary["metric_per_case"]:
            case["patient"] = "P1"

    other = change_summary(folders, change)
    summary = read_summary(other) | {"prompts": "none (automatic)"}
    (folders / "a" / "summary.json").write_text(json.dumps(summary))
    assert call(compare, folders / "a", other) == 0
    printed = capsys.readouterr().err
    assert "warning: prompts differs: none (automatic) in A, box from" in printed
    assert "warning: some cases are of one patient" in printed


def test_compare_needs_exactly_one_evaluation_of_a_run(folders, capsys):
    assert call(compare, folders, folders) == 2
    assert "holds neither" in capsys.readouterr().err
    for name in ("test_points3", "test_none"):
        out = folders / "eval" / name
        assert call(score, folders / "a", folders / "labels", GIVEN, f"--out={out}") == 0
        expected = 0 if name == "test_points3" else 2
        assert call(compare, folders, out) == expected
    printed = capsys.readouterr().err
    assert "holds 2 evaluations" in printed and "test_none" in printed
    assert call(compare, folders / "a", folders / "b", "--tolerance=3") == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_score_of_shifted_real_organ(tmp_path, axis):
    path = REAL_DATA / "word_labels" / "word_0017.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    volume = nibabel.load(path)
    crop = volume.slicer[200:320, 240:350, 36:68]
    bladder = (np.asanyarray(crop.dataobj) == 14).astype(np.uint8)
    assert bladder.sum() > 100_000  # the whole organ, so that np.roll wraps nothing around
    spacing = volume.header.get_zooms()
    eroded = ndimage.binary_erosion(np.roll(bladder, 1, axis), np.ones((3, 3, 1)))
    for name, labels in (
        ("truth", bladder),
        ("moved", np.roll(bladder, 1, axis)),
        ("eroded", eroded),
    ):
        (tmp_path / name).mkdir()
        moved = nibabel.Nifti1Image(labels.astype(np.uint8), crop.affine)
        nibabel.save(moved, tmp_path / name / "x.nii.gz")
    shift, pixel = float(spacing[axis]), float(np.hypot(*spacing[:2]))
    options = ("--classes=background,bladder", f"--tolerance={shift + 1e-4}")
    found = {}
    for name in ("moved", "eroded"):
        assert call(score, tmp_path / name, tmp_path / "truth", *options) == 0
        found[name] = read_summary(tmp_path / name)["metric_per_case"][0]["metrics"]["1"]
    assert found["moved"]["HD95"] == pytest.approx(shift, rel=1e-5)
    assert found["moved"]["NSD"] == 1.0
    assert shift - pixel <= found["eroded"]["HD95"] <= shift + pixel + 1e-5


@pytest.mark.parametrize("place", ["score", "compare"])
def test_class_named_mean_in_dataset_json_is_rejected(folders, place, capsys):
    write_description(folders / "a", ("background", "mean", "tumour"))
    if place == "score":
        assert call(score, folders / "a", folders / "labels") == 2
    else:
        scores = {"x": {"1": (1, 1, 1), "2": (1, 1, 1)}}
        nnunet_folder(folders / "a", scores)
        assert call(compare, folders / "a", folders / "a") == 2
    assert "expected no class named mean" in capsys.readouterr().err


def test_patient_numbers_tell_patients_from_cases():
    results = [CaseResult(x, y, None, None, []) for x, y in (("a", "case 1"), ("b", None))]
    assert len(set(patient_numbers(results).tolist())) == 2


def test_score_and_compare_survive_latin_1_file_names(folders, monkeypatch):
    for place in ("a", "labels"):
        path = folders / place / "case_1.nii.gz"
        path.rename(path.with_name("caf\udce9:x:[b].nii.gz"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")  # lacks the en dash of tables
    monkeypatch.setattr("sys.stdout", stream)
    assert call(score, folders / "a", folders / "labels", GIVEN) == 0
    rows = (folders / "a" / "per_case.csv").read_bytes()
    assert b"caf\xe9:x:[b],rectum,Dice," in rows
    assert read_summary(folders / "a")["metric_per_case"][0]["case"] == "caf\udce9:x:[b]"
    assert call(compare, folders / "a", folders / "a", f"--out={folders / 'out'}") == 0
    assert b"caf\xe9:x:[b]," in (folders / "out" / "comparison.csv").read_bytes()
    console.accept_all_names()
    print("caf\udce9", "\N{EN DASH}", flush=True)
    assert stream.buffer.getvalue().endswith(b"caf\xe9 \\u2013\n")


def test_score_pairs_outputs_of_predict_with_labels(folders, capsys):
    for i, path in enumerate(sorted((folders / "a").glob("*.nii.gz"))):
        name = path.name.removesuffix(".nii.gz")
        mask = path.with_name(f"{name}_0000.nii.gz" if i % 2 else f"{name}.NII.GZ")
        write(mask.with_name(f"{volume_name(mask)}_probabilities.nii.gz"), make_labels(1))
        (path.parent / f"{name}.json").write_text("{}")
        path.rename(mask)
    assert call(score, folders / "a", folders / "labels", GIVEN) == 0
    found = read_summary(folders / "a")
    assert [x["case"] for x in found["metric_per_case"]] == NAMES and found["left_out"] == []


def test_score_finds_nested_cases_and_lists_what_is_left_out(folders, capsys):
    for place in ("a", "labels"):
        (folders / place / "p1").mkdir()
        path = folders / place / "case_1.nii.gz"
        path.rename(folders / place / "p1" / "ct.nii.gz")
    (folders / "a" / "case_9.mhd").write_text("")
    (folders / "a" / "scores").mkdir()
    assert call(score, folders / "a", folders / "labels", GIVEN) == 4
    assert "1 files were left out" in capsys.readouterr().err
    found = read_summary(folders / "a")
    assert [x["case"] for x in found["metric_per_case"]] == [*NAMES[1:], "p1/ct"]
    assert [x.split(": ")[0] for x in found["left_out"]] == [str(folders / "a" / "case_9.mhd")]
    out = folders / "out"
    reference = f"--reference={folders / 'labels'}"
    (folders / "b" / "case_1.nii").rename(folders / "b" / "x.nii")
    (folders / "b" / "p1").mkdir()
    (folders / "b" / "x.nii").rename(folders / "b" / "p1" / "ct.nii")
    assert call(compare, folders / "a", folders / "b", reference, GIVEN, f"--out={out}") == 4
    assert (out / "comparison.json").is_file()


@pytest.mark.parametrize("name", ["per_case.csv", "comparison.csv", "comparison.png"])
def test_score_and_compare_keep_foreign_results(folders, name, capsys):
    out = folders / "out"
    out.mkdir()
    (out / name).write_text("of the user")
    if name == "per_case.csv":
        assert call(score, folders / "a", folders / "labels", GIVEN, f"--out={out}") == 2
    else:
        reference = f"--reference={folders / 'labels'}"
        options = (reference, GIVEN, f"--out={out}")
        assert call(compare, folders / "a", folders / "b", *options) == 2
    assert "so it is kept" in capsys.readouterr().err
    assert [x.name for x in out.iterdir()] == [name]
