"""Plots of an evaluation and its HTML report."""

import os
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from usam_jax.evaluation.case_metrics import Scoring, score_case
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.report import html, plots
from usam_jax.evaluation.report.plots import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    WRONG_CLASS,
    ReportSlice,
)
from usam_jax.evaluation.summary import summarise
from usam_jax.utils.plotting import save_figure

ORACLE = "3 points per class from the ground truth"
CARE = ("background", "normal rectum", "tumour")
WORD = ("background", *(f"organ_{i}" for i in range(1, 17)))
ODD_NAME = '<b>&"'


def make_truth(classes: tuple[str, ...]) -> np.ndarray:
    """A column of squares, one per foreground class: uint8[2 4k 8]."""
    truth = np.zeros((2, 4 * len(classes), 8), np.uint8)
    for value in range(1, len(classes)):
        truth[:, 4 * value : 4 * value + 3, 2:5] = value
    return truth


def make_summary(classes: tuple[str, ...], **changes) -> dict:
    """Three predictions: correct, shifted by one pixel, and without the last class."""
    truth = make_truth(classes)
    missed = np.where(truth == len(classes) - 1, 0, truth)
    scoring = Scoring(classes, (1.0,) * (len(classes) - 1))
    results = [
        CaseResult(name, None, None, None, score_case(truth, predicted, None, scoring))
        for name, predicted in (("a", truth), ("b", np.roll(truth, 1, 2)), (ODD_NAME, missed))
    ]
    pooled = {**dict.fromkeys(classes[1:-1], 0.5), classes[-1]: None, "mean": 0.5}
    both = {"dice": pooled, "iou": pooled}
    return {
        **summarise(results, scoring, in_mm=False),
        "workdir": "runs/x",
        "checkpoint_step": 7,
        "checkpoint_chosen_on": "val",
        "data": "packed/x",
        "data_fingerprint": "0123",
        "split": "test",
        "num_slices": 6,
        "prompts": ORACLE,
        "trained_with": ORACLE,
        "pooled": both,
        "automatic": False,
        "sensitivity": {
            "prompts": "3 points per class",
            "trained": True,
            "changed": 0.25,
            "dice": 0.125,
        },
        "clicks": None,
        "other_prompts": {"none": {"prompts": "none (automatic)", **both}},
        "noise": [{"pixels": 0.0, "dice": pooled}, {"pixels": 4.0, "dice": pooled}],
        "paper": [{"name": "U-SAM", "dice": dict.fromkeys(classes[1:], 66.25), "iou": {}}],
        "resolution": "packed",
    } | changes


def make_report_slice(num_points: int, box: bool) -> ReportSlice:
    label = np.zeros((32, 32), np.uint8)
    label[10:20, 8:18] = 1
    return ReportSlice(
        case="$a",
        name="$a$_{000",  # must not be parsed as a formula
        why="largest error",
        dice=None,
        image=np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8),
        truth=label,
        predicted=np.roll(label, 3, 0),
        prompts={
            "points_xy": np.full((num_points, 2), 12, np.float32),
            "point_labels": np.arange(num_points, dtype=np.int32) % 3 - 1,
            "boxes_xyxy": np.array([8, 10, 17, 19], np.float32),
            "prompts_given": np.array([True] * num_points + [box]),
        },
    )


def write(path, summary, sections=()) -> str:
    html.write_report(path, summary, list(sections))
    return path.read_text()


def assert_drawn(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000
    assert list(path.parent.glob(".tmp.*")) == []


def test_find_errors_returns_kind_of_error():
    truth = np.array([[0, 0, 1, 1, 2]], np.uint8)
    predicted = np.array([[0, 2, 0, 1, 1]], np.uint8)
    found = plots.find_errors(truth, predicted)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, FALSE_POSITIVE, FALSE_NEGATIVE, 0, WRONG_CLASS]]


def test_draw_errors_uses_colours_of_legend():
    errors = np.array([[0, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS]], np.uint8)
    axes = Figure().subplots()
    plots.draw_errors(axes, np.zeros((1, 4), np.uint8), errors)
    overlay = axes.images[-1]
    rgba = overlay.to_rgba(overlay.get_array())[0]
    assert rgba[0, 3] == 0
    assert [to_hex(x) for x in rgba[1:]] == list(plots.ERRORS.values())


@pytest.mark.parametrize(("num_points", "box"), [(0, False), (3, True)])
def test_save_slices_with_and_without_prompts(tmp_path, num_points, box):
    path = tmp_path / "slices.png"
    plots.save_slices(path, [make_report_slice(num_points, box)], CARE, "worst")
    assert_drawn(path)


def test_draw_prompts_skips_prompts_not_given():
    axes = Figure().subplots()
    prompts = make_report_slice(3, False).prompts | {"prompts_given": np.array([1, 1, 0, 0], bool)}
    plots.draw_prompts(axes, prompts)
    drawn = {line.get_markerfacecolor(): len(line.get_xdata()) for line in axes.lines}
    assert drawn == {"yellow": 0, "red": 1} and not axes.patches


@pytest.mark.parametrize("classes", [CARE, WORD])
def test_plots_over_cases_are_saved(tmp_path, classes):
    summary = make_summary(classes)
    plots.save_boxes(tmp_path / "boxes.png", summary)
    plots.save_sizes(tmp_path / "sizes.png", summary, classes[-1])
    plots.save_prompt_jitter(tmp_path / "noise.png", summary["noise"], classes, automatic=0.4)
    for path in tmp_path.iterdir():
        assert_drawn(path)


def test_save_sizes_without_case_of_the_class(tmp_path):
    summary = make_summary(CARE) | {"metric_per_case": []}
    plots.save_sizes(tmp_path / "sizes.png", summary, "tumour")
    assert_drawn(tmp_path / "sizes.png")


def test_report_is_self_contained(tmp_path):
    picture = tmp_path / "slices.png"
    plots.save_slices(picture, [make_report_slice(3, True)], CARE)
    page = write(tmp_path / "x.html", make_summary(CARE), [("Slices", "Two.", [picture] * 2)])
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 2 and all(x.startswith("data:image/png;base64,") for x in sources)
    assert page.count('<img alt="Slices: slices"') == 2 and 'lang="en"' in page
    assert not re.search(r"<script|<link|@import|url\(|https?://", page)


def test_report_escapes_names_from_data(tmp_path):
    page = write(tmp_path / "x.html", make_summary(CARE), [(ODD_NAME, ODD_NAME, [])])
    assert ODD_NAME not in page and "<b>" not in page
    assert page.count("&lt;b&gt;&amp;&quot;") == 4  # two classes, heading and text


BYTES = "caf\udce9 $\\foo$ [/b] :x:"  # a Latin-1 file name, with what markup would interpret


def test_report_and_plots_survive_every_file_name(tmp_path):
    summary = make_summary(CARE)
    for case in summary["metric_per_case"]:
        case["case"] = BYTES
    html.write_report(tmp_path / "x.html", summary, [(BYTES, BYTES, [])])
    assert os.fsencode("caf\udce9") in (tmp_path / "x.html").read_bytes()
    figure = Figure()
    figure.subplots().set_title(BYTES)
    save_figure(figure, tmp_path / "x.png")
    assert_drawn(tmp_path / "x.png")


@pytest.mark.parametrize(("prompts", "warns"), [(ORACLE, True), ("none (automatic)", False)])
def test_report_warns_of_oracle_prompts(tmp_path, prompts, warns):
    page = write(tmp_path / "x.html", make_summary(CARE, prompts=prompts, automatic=not warns))
    assert ("these are not automatic results" in page) == warns
    assert ("these are automatic results" in page) != warns


def test_report_marks_absent_classes_and_paper_rows(tmp_path):
    page = write(tmp_path / "x.html", make_summary(CARE))
    pooled = page[page.index("Pooled metrics") : page.index("Metrics over the cases")]
    assert (
        pooled.count("<td>50.00</td><td>absent</td><td>50.00</td>") == 4
    )  # two rows, Dice and IoU
    assert pooled.count("paper: U-SAM") == 1 and "<td>66.25</td>" in pooled


def test_report_lists_worst_cases_first_and_cuts_many(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MAX_CASES", 2)
    page = write(tmp_path / "x.html", make_summary(CARE))
    listed = page[page.index("<h2>Cases</h2>") :]
    names = re.findall(r'<tr><th scope="row">(.*?)</th><td>tumour', listed)
    assert len(names) == 2 and names[0] == "&lt;b&gt;&amp;&quot;"
    assert "of 3. The other cases and all metrics are in per_case.csv" in listed


def test_report_transposes_tables_of_many_classes(tmp_path):
    page = write(tmp_path / "x.html", make_summary(WORD, paper=[], noise=[], other_prompts={}))
    assert "paper" not in page
    for name in WORD[1:]:
        # Dice and IoU, status, six metrics, and three cases.
        assert page.count(f">{name}<") == 12


def test_report_has_clicks_by_class(tmp_path):
    by_class = {x: {"dice": [0.5, None], "num_clicks": 3, "adherence": 0.75} for x in CARE[1:]}
    clicks = {"num_slices": 4, "dice": [0.5, 0.5], "classes": by_class}
    page = write(tmp_path / "x.html", make_summary(CARE, clicks=clicks))
    assert "pooled over 4 slices with foreground" in page
    assert "<td>50.00</td><td>absent</td><td>3</td><td>75.0</td>" in page
