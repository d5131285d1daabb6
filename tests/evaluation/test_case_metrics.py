"""Metrics of cases compared with known shapes and with brute force."""

import numpy as np
import pytest
from conftest import REAL_DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from usam_jax.evaluation import case_metrics, summary
from usam_jax.evaluation.case_metrics import Scoring, score_case
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.report.tables import print_cases

SPACING = (3.0, 0.8, 1.2)  # mm: anisotropic, as CT is


def score(truth, predicted, spacing=SPACING, tolerance=2.0, name="tumour", policy="worst"):
    scoring = Scoring(("background", name), (tolerance,), policy)
    return score_case(truth.astype(np.uint8), predicted.astype(np.uint8), spacing, scoring)[0]


def grid(shape, spacing=SPACING):
    """Coordinates in mm of the voxel centres, relative to the middle of the volume."""
    return np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)),
        indexing="ij",
    )


def sphere(shape, radius):
    z, y, x = grid(shape)
    return z**2 + y**2 + x**2 <= radius**2


@pytest.mark.parametrize(("radius", "other"), [(15.0, 15.0), (15.0, 20.0), (18.0, 12.0)])
def test_hd95_of_concentric_spheres_is_radius_difference(radius, other):
    shape = (21, 71, 51)
    truth, predicted = sphere(shape, radius), sphere(shape, other)
    apart = abs(radius - other)
    voxel = max(SPACING)
    found = score(truth, predicted)
    assert abs(found["HD95"] - apart) <= voxel
    assert score(truth, predicted, tolerance=apart + voxel)["NSD"] == 1.0
    if apart > voxel:
        assert score(truth, predicted, tolerance=(apart - voxel) / 2)["NSD"] < 0.1
    exact = 2 * min(radius, other) ** 3 / (radius**3 + other**3)
    assert found["Dice"] == pytest.approx(exact, abs=0.02)
    assert found["volume"] == pytest.approx(4 / 3 * np.pi * other**3 / 1000, rel=0.02)


@pytest.mark.parametrize(("axis", "voxels"), [(0, 2), (1, 5), (2, 3)])
def test_hd95_of_shifted_cube_is_the_shift(axis, voxels):
    truth = np.zeros((20, 40, 40), bool)
    truth[5:13, 10:26, 8:28] = True
    predicted = np.roll(truth, voxels, axis)
    shift = voxels * SPACING[axis]
    found = score(truth, predicted, tolerance=shift)
    # The faces across the shift are more than 5 % of the surface; all other faces coincide.
    assert found["HD95"] == pytest.approx(shift)
    assert found["NSD"] == 1.0
    assert score(truth, predicted, tolerance=shift * 0.99)["NSD"] < 1.0
    overlap = 1 - voxels / truth.any(tuple({0, 1, 2} - {axis})).sum()
    assert found["Dice"] == pytest.approx(overlap)
    assert found["IoU"] == pytest.approx(overlap / (2 - overlap))
    assert found["reference_volume"] == pytest.approx(truth.sum() * np.prod(SPACING) / 1000)


def brute_surface(mask):
    """Voxels with a face neighbour outside the mask, tested one by one."""
    padded = np.pad(mask, 1)
    axes = np.eye(mask.ndim, dtype=int)
    return np.array(
        [
            p
            for p in np.argwhere(mask)
            if not all(padded[tuple(p + 1 + step * a)] for a in axes for step in (-1, 1))
        ]
    )


MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5))


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 2**32 - 1), st.floats(0.3, 5))
def test_score_case_matches_brute_force(truth, seed, tolerance):
    predicted = np.random.default_rng(seed).random(truth.shape) < 0.5
    found = score(truth, predicted, tolerance=tolerance)
    if not (truth.any() and predicted.any()):
        assert found["status"] != "ok"
        return
    a, b = (brute_surface(x) * np.array(SPACING) for x in (truth, predicted))
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    to_b, to_a = pairs.min(1), pairs.min(0)
    assert found["HD95"] == pytest.approx(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))
    within = (to_b <= tolerance).sum() + (to_a <= tolerance).sum()
    assert found["NSD"] == pytest.approx(within / (len(to_a) + len(to_b)))
    assert found["TP"] == (truth & predicted).sum()
    assert found["TN"] == (~truth & ~predicted).sum()


def test_score_case_measures_single_slice_as_plane():
    y, x = np.mgrid[:64, :64]
    disc = ((y - 30) ** 2 + (x - 30) ** 2 <= 15**2)[None]
    hole = ((y - 30) ** 2 + (x - 30) ** 2 <= 5**2)[None]
    found = score(disc, disc & ~hole, spacing=None)
    assert found["HD95"] == pytest.approx(10, abs=1)  # from the hole's rim to the disc's
    assert found["volume"] == (disc & ~hole).sum()  # pixels, since no spacing is given


def test_class_in_one_slice_has_surface_above_and_below():
    y, x = np.mgrid[:64, :64]
    disc, hole = (((y - 30) ** 2 + (x - 30) ** 2 <= r**2) for r in (15, 5))
    truth = np.zeros((10, 64, 64), bool)
    truth[4] = disc
    predicted = truth.copy()
    predicted[4] &= ~hole
    one = score(truth, predicted, (5.0, 1.0, 1.0))
    predicted[5, 30, 45] = True  # one voxel more must not change how the rest is measured
    two = score(truth, predicted, (5.0, 1.0, 1.0))
    assert one["HD95"] == pytest.approx(two["HD95"], abs=0.2)
    assert one["NSD"] == pytest.approx(two["NSD"], abs=0.01)


def test_missed_and_false_alarm_score_worst_absent_scores_none():
    some, none = np.zeros((4, 8, 8), bool), np.zeros((4, 8, 8), bool)
    some[1:3, 2:5, 2:5] = True
    diagonal = np.linalg.norm(np.array(some.shape) * SPACING)
    for truth, predicted, status in ((some, none, "missed"), (none, some, "false_alarm")):
        found = score(truth, predicted)
        assert found["status"] == status
        assert (found["Dice"], found["IoU"], found["NSD"]) == (0.0, 0.0, 0.0)
        assert found["HD95"] == pytest.approx(diagonal)
        skipped = score(truth, predicted, policy="skip")
        assert [skipped[x] for x in summary.METRICS] == [None] * 4
    absent = score(none, none)
    assert absent["status"] == "absent"
    assert [absent[x] for x in summary.METRICS] == [None] * 4


def test_count_lesions_counts_components():
    truth, predicted = np.zeros((6, 20, 20), bool), np.zeros((6, 20, 20), bool)
    truth[1, 1:5, 1:6] = True  # 20 voxels, 2 of them predicted: found
    predicted[1, 1, 1:3] = True
    truth[3, 1:5, 1:6] = True  # 1 of 20: missed
    predicted[3, 4, 5] = True
    truth[1:3, 12:14, 12:14] = True  # missed
    predicted[5, 18:, 18:] = True  # overlaps no lesion
    found = score(truth, predicted)
    assert (found["lesions"], found["lesions_found"], found["lesions_false"]) == (3, 1, 1)
    assert "lesions" not in score(truth, predicted, name="liver")


def results(dice, patients=None):
    patients = patients or [f"p{i}" for i in range(len(dice))]
    scores = [
        {**dict.fromkeys((*summary.METRICS, *summary.COUNTS, *summary.VOLUMES)), "Dice": x}
        | {"status": "absent" if x is None else "ok"}
        for x in dice
    ]
    return [
        CaseResult(f"c{i}", p, None, None, [x])
        for i, (x, p) in enumerate(zip(scores, patients, strict=True))
    ]


def test_summarise_counts_absent_cases_outside_the_mean():
    made = summary.summarise(
        results([0.2, None, 0.6, 0.7]), Scoring(("background", "liver"), (2.0,)), in_mm=True
    )
    found = made["cases"]["liver"]
    assert (found["ok"], found["absent"], found["missed"]) == (3, 1, 0)
    assert found["Dice"]["n"] == 3
    assert found["Dice"]["mean"] == pytest.approx(0.5)
    assert found["Dice"]["sd"] == pytest.approx(np.std([0.2, 0.6, 0.7], ddof=1))
    assert found["Dice"]["median"] == pytest.approx(0.6)
    assert made["mean"]["1"]["Dice"] == made["foreground_mean"]["Dice"] == pytest.approx(0.5)


def test_bootstrap_interval_has_nominal_coverage():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        values = rng.normal(0.7, 0.1, 40)
        low, high = summary.bootstrap(values, np.arange(40)) or (0, 0)
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99  # 0.95 for many cases; one standard deviation here is 0.015


def test_bootstrap_resamples_patients_not_cases():
    values = np.repeat(np.random.default_rng(0).random(10), 50)
    alone, grouped = (
        np.ptp(summary.bootstrap(values, x) or [0])
        for x in (np.arange(500), np.repeat(np.arange(10), 50))
    )
    assert grouped > 4 * alone
    assert summary.bootstrap(values, np.zeros(500, int)) is None


def test_summarise_interval_is_over_patients_with_a_value():
    scoring = Scoring(("background", "liver"), (2.0,))
    dice = [0.1, 0.2, 0.9, 0.8, None, 0.5]

    def interval(patients):
        made = summary.summarise(results(dice, patients), scoring, in_mm=True)
        return made["cases"]["liver"]["Dice"]["ci95"]

    low, high = interval(["a", "a", "b", "b", "c", "b"])
    assert low == pytest.approx(0.15) and high == pytest.approx(
        2.2 / 3
    )  # resamples of a or of b alone
    assert interval(["a", "a", "a", "a", "c", "a"]) is None  # c has no value
    assert interval(None)[0] > low


def test_print_cases_shows_missed_and_false_alarms(capsys):
    made = results([0.5, 0.0, 0.0, 0.0, None])
    statuses = ("ok", "missed", "missed", "false_alarm", "absent")
    for case, status in zip(made, statuses, strict=True):
        case.scores[0]["status"] = status
    print_cases(summary.summarise(made, Scoring(("background", "liver"), (2.0,)), in_mm=True))
    (row,) = [x for x in capsys.readouterr().out.splitlines() if "liver" in x]
    assert [x.strip() for x in row.split("│")[1:6]] == ["liver", "3", "2", "1", "1"]


def test_confusion_matrix_of_many_classes():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 200, (2, 3, 16, 16), dtype=np.uint8)
    counts = case_metrics.confusion_matrix(truth, predicted, 200)
    assert counts.sum() == truth.size
    assert counts[5, 7] == ((truth == 5) & (predicted == 7)).sum()


def test_score_case_of_shifted_real_labels():
    from usam_jax.io import nifti

    path = REAL_DATA / "word_labels" / "word_0014.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    labels = nifti.read_labels(path, 17)[120:180]
    spacing = nifti.read_geometry(path).spacing_mm
    scoring = Scoring(tuple(f"organ {i}" for i in range(17)), (spacing[2] * 3,) * 16)
    liver = np.where(labels == 1, labels, np.uint8(0))
    shifted = np.pad(liver, ((0, 0), (0, 0), (3, 0)))[..., :-3]
    found = score_case(liver, shifted, spacing, scoring)[0]
    assert 2 * spacing[2] <= found["HD95"] <= 3 * spacing[2] + 1e-9
    assert found["NSD"] == 1.0
