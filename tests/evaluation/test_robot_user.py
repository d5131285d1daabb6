"""The robot user and the scores of its clicks."""

import dataclasses
import types

import numpy as np
import pytest
from conftest import make_variables, phantom_config, save_run

from usam_jax.data import prompt_modes
from usam_jax.data.splits import Subset
from usam_jax.evaluation import evaluate, interactive, robot_user
from usam_jax.evaluation.report import words
from usam_jax.evaluation.report.clicks import (
    Corrected,
    draw_curve,
    save_corrections,
    save_curve,
)


def two_errors() -> tuple[np.ndarray, np.ndarray]:
    """A prediction uint8[20 20] that misses a 7x7 square of class 1 and invents 3x3 of class 2."""
    label, predicted = np.zeros((2, 20, 20), np.uint8)
    label[2:9, 2:9] = 1
    predicted[14:17, 14:17] = 2
    return predicted, label


def test_next_click_lies_in_the_largest_error():
    predicted, label = two_errors()
    click = robot_user.next_click(predicted, label)
    assert (click.xy, click.label, click.before) == ((5, 5), 1, 0)
    assert click.region.sum() == 49
    fixed = np.where(label == 1, 1, predicted)
    click = robot_user.next_click(fixed, label)
    assert (click.xy, click.label, click.before) == ((15, 15), 0, 2)
    assert robot_user.next_click(label, label) is None


def test_no_pixel_is_clicked_twice():
    predicted, label = two_errors()
    earlier = [(5, 5)]
    click = robot_user.next_click(predicted, label, earlier)
    assert click.region.sum() == 49 and click.xy == (3, 3)  # between the corner and (5, 5)
    label[2:9, 2:9] = 0
    label[0, 0] = 1  # the smaller of the two errors
    earlier = []
    while click := robot_user.next_click(predicted, label, earlier):
        assert click.xy not in earlier
        earlier.append(click.xy)
    assert len(earlier) == 10 and earlier[-1] == (0, 0)


def test_click_is_obeyed_and_clears_its_region():
    predicted, label = two_errors()
    negative = robot_user.next_click(np.where(label == 1, 1, predicted), label)
    assert not robot_user.obeys(negative, predicted)
    half = predicted.copy()
    half[14:16, 14:17] = 0
    assert robot_user.obeys(negative, half)
    assert robot_user.cleared(negative, half) == 6 / 9


def record_of(tp: list[list[int]]) -> interactive.ClickRecord:
    """A record of slices with 100 pixels of class 1, of which `tp` are found after each click."""
    counts = np.zeros((len(tp), len(tp[0]), 2, 3), np.int32)
    counts[:, :, 1, 0] = tp
    counts[:, :, 1, 2] = 100 - np.array(tp)
    n, m = len(tp), len(tp[0]) - 1
    made = np.ones((n, m), bool)
    labels = np.tile(np.arange(m) % 2, (n, 1)).astype(np.uint8)
    return interactive.ClickRecord(
        np.arange(n),
        counts,
        made,
        labels == 1,
        np.zeros((n, m, 2), np.int32),
        labels,
        np.full((n, m), 0.5, np.float32),
        np.zeros((n, 0), np.uint8),
    )


def test_summary_counts_clicks_until_the_target():
    # Dice 2 tp / (tp + 100): 0.667, 0.857 and 0.947; 0, 0.333 and 0.667.
    record = record_of([[50, 75, 90], [0, 20, 50]])
    summary = interactive.summarise_clicks(record, ("background", "rectum"))
    np.testing.assert_allclose(summary["dice"], [1 / 3, (6 / 7 + 1 / 3) / 2, (18 / 19 + 2 / 3) / 2])
    assert summary["number_of_clicks"]["85"] == {"mean": 1.5, "failed": 0.5}
    assert summary["number_of_clicks"]["90"] == {"mean": 2.0, "failed": 0.5}
    assert (summary["num_clicks"], summary["adherence"]) == (4, 0.5)
    assert (summary["adherence_negative"], summary["cleared_by_negative"]) == (0.0, 1.0)
    rectum = summary["classes"]["rectum"]
    np.testing.assert_allclose(rectum["dice"], [100 / 250, 190 / 295, 280 / 340])
    assert (rectum["num_clicks"], rectum["adherence"]) == (2, 1.0)
    assert "85 %: 1.5" in words.describe_clicks(summary)


def test_each_click_follows_the_prediction_before_it():
    config = phantom_config(**{"eval.max_clicks": 3})
    truth = np.zeros((2, 16, 16), np.uint8)
    truth[0, 2:7, 2:7], truth[0, 10:13, 10:13] = 1, 2
    seen = []

    def predict(prompts, previous):
        """Paint the class of each click on its region of the truth, as a network that obeys."""
        given = prompts["prompts_given"][:, :-1]
        seen.append((given.sum(1).tolist(), float(previous)))
        painted = np.zeros((4, 16, 16), np.uint8)  # a batch of 4, two of them padding
        for i, n in np.argwhere(given):
            label = prompts["point_classes"][i, n]
            painted[i][truth[i] == label] = label
        counts = np.zeros((4, 3, 3), np.int32)
        counts[:, 0, 0] = len(seen)
        return counts, painted, previous + 1

    found = interactive.click_batch(predict, 0.0, truth, 4, config, keep=True)
    # The second slice has no error, the first none after two clicks: no more clicks are made.
    assert seen == [([0] * 4, 0.0), ([1, 0, 0, 0], 1.0), ([2, 0, 0, 0], 2.0), ([2, 0, 0, 0], 3.0)]
    assert found["xy"][0, :2].tolist() == [[4, 4], [11, 11]]
    assert found["labels"][0].tolist() == [1, 2, 0]
    assert found["clicked"].tolist() == [[True, True, False], [False] * 3]
    assert found["obeyed"][0].tolist() == [True, True, False]
    np.testing.assert_array_equal(found["predicted"][:, -1], truth)
    np.testing.assert_array_equal(found["counts"][:, :, 0, 0], [[1, 2, 3, 3], [1, 1, 1, 1]])


@pytest.mark.slow
def test_robot_user_clicks_through_an_evaluation(tmp_path, monkeypatch, capsys):
    config = phantom_config(
        **{
            "model.interactive": True,
            "prompts.kind": "interactive",
            "eval.max_clicks": 2,
            "eval.prompts": ("none",),
            "data.num_patients": (3, 2),
            "data.slices_per_patient": 7,
            "data.packed_dir": str(tmp_path / "packed"),
        }
    )
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", config, make_variables(config.model))
    seen = {}

    def keep(module, name):
        """Keep what a function returns, and its arguments."""
        original = getattr(module, name)

        def kept(*arguments, **named):
            seen[name] = arguments, original(*arguments, **named)
            return seen[name][1]

        monkeypatch.setattr(module, name, kept)

    keep(interactive, "make_click_decoder")
    keep(interactive, "summarise_clicks")
    keep(evaluate, "predict_subset")
    keep(evaluate, "make_forward")
    summary = evaluate.evaluate_workdir(config, tmp_path / "run")
    # One program for all clicks of all batches, the last of them padded, and one encoding.
    assert seen["make_click_decoder"][1]._cache_size() == 1
    assert seen["make_forward"][1].encode._cache_size() == 1
    ((record, _), found), (_, done) = seen["summarise_clicks"], seen["predict_subset"]
    n = len(record.rows)
    assert n > config.eval.batch_size and n % config.eval.batch_size
    difference = np.abs(record.counts[:, 0] - done.counts["none"][record.rows])
    assert difference.max() <= 2  # by rounding alone
    assert record.clicked.all() and found["num_clicks"] == 2 * n
    assert summary["clicks"] == found
    report = (tmp_path / "run/eval/test_points3/report.html").read_text()
    for text in (report, capsys.readouterr().out):
        assert "clicks on it" in text and "A robot user" in text


def test_moved_clicks_lie_on_whole_pixels_and_the_last_counts():
    config = phantom_config(**{"model.interactive": True, "prompts.kind": "interactive"})
    config.eval.prompt_jitter_px = (0.5, 1.0)
    near, far = prompt_modes.jittered_modes(config)
    label = np.zeros((32, 32), np.uint8)
    label[9, 9] = 1  # the other class is absent
    for mode in (near, far):
        made = mode(label, 0, mode.num_points)
        xy = made["points_xy"][made["prompts_given"][:-1]]
        np.testing.assert_array_equal(xy, np.rint(xy))
        assert len(np.unique(xy, axis=0)) == len(xy) and 1 <= len(xy) < 3
        assert np.abs(xy - 9).max() <= 1


def test_split_without_foreground_has_no_clicks():
    packed = types.SimpleNamespace(labels=lambda _split: np.zeros((3, 8, 8), np.uint8))
    subset = Subset("test", np.arange(3))
    assert evaluate.click_through(None, None, packed, subset, None) == (None, [])


def test_sensitivity_warns_of_ignored_prompts():
    found = {"prompts": "box", "trained": True, "changed": 0.0004, "dice": 0.0}
    text = words.describe_sensitivity(found)
    assert text.startswith("warning: the model ignores its prompts: the prompts (box) change 0.04")
    text = words.describe_sensitivity(found | {"trained": False})
    assert text.startswith("the model was trained without prompts; the prompts (box) change 0.04")
    assert "not measured" in words.describe_sensitivity(None)
    text = words.describe_sensitivity(found | {"changed": 0.25, "dice": 0.1234})
    assert "25.00 %" in text and "+12.34 points" in text and "warning" not in text


def summary_with_absent_class() -> dict:
    record = record_of([[50, 75, 90]])
    counts = np.concatenate([record.counts, np.zeros((1, 3, 1, 3), np.int32)], 2)
    record = dataclasses.replace(record, counts=counts)
    return interactive.summarise_clicks(record, ("background", "rectum", "tumour"))


def test_curve_has_a_line_for_each_class():
    figure = draw_curve(summary_with_absent_class())
    lines = {x.get_label(): x.get_ydata() for x in figure.axes[0].lines}
    np.testing.assert_allclose(lines["rectum, pooled"], [66.67, 85.71, 94.74], atol=0.01)
    assert np.isnan(lines["tumour, pooled"]).all()
    columns, rows = words.clicks_by_class(summary_with_absent_class())
    assert columns == ["class", "automatic", "1", "clicks on it", "obeyed (%)"]
    assert rows == [
        ["rectum", "66.67", "85.71", "1", "100.0"],
        ["tumour", *["absent"] * 2, "0", "absent"],
    ]


def test_click_plots_are_drawn(tmp_path):
    predicted, label = two_errors()
    one = Corrected(
        "a$",
        label * 90,
        label,
        (0, 1),
        np.stack([predicted, label]),
        (0.0, 1.0),
        ((), ((5, 5, 1),)),
    )
    save_corrections(tmp_path / "corrections.png", [one], ("background", "rectum", "tumour"))
    save_curve(tmp_path / "clicks.png", summary_with_absent_class())
    assert all((tmp_path / x).stat().st_size > 5000 for x in ("corrections.png", "clicks.png"))
