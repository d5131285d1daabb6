"""The robot user and the scores of its clicks."""

import numpy as np

from usam_jax.evaluation import interactive, robot_user
from usam_jax.evaluation.report import words
from usam_jax.evaluation.report.clicks import Corrected, save_corrections, save_curve


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


def test_sensitivity_warns_of_ignored_prompts():
    assert words.describe_sensitivity({"changed": 0.0004, "dice": 0.0}).startswith("warning")
    text = words.describe_sensitivity({"changed": 0.25, "dice": 0.1234})
    assert "25.00 %" in text and "+12.34 points" in text and "warning" not in text


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
    summary = interactive.summarise_clicks(record_of([[50, 75, 90]]), ("background", "rectum"))
    save_curve(tmp_path / "clicks.png", summary)
    assert all((tmp_path / x).stat().st_size > 5000 for x in ("corrections.png", "clicks.png"))
