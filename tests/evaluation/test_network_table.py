"""The table of a comparison of networks: intervals, tests, its forms and its plots."""

import csv

import numpy as np
import pytest
from matplotlib.figure import Figure
from network_results import (
    CLASSES,
    DEPTH,
    NUM_CASES,
    PATIENTS,
    SIZE,
    count,
    make_run,
    make_shown,
    make_truth,
)

from usam_jax.evaluation import network_table
from usam_jax.evaluation.network_table import Finished, make_table
from usam_jax.evaluation.pixel_counts import pooled_scores, sum_by_case
from usam_jax.evaluation.report import network_plots, network_tables


def make_finished(folder, name, network, shifts, patients, window=1) -> Finished:
    runs = [make_run(folder / name / str(i), x, patients) for i, x in enumerate(shifts)]
    results, folders = zip(*runs, strict=True)
    return Finished(name, network, window, list(range(len(shifts))), list(results), list(folders))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    finished = [
        make_finished(folder, "swin_unet", "swin_unet", (3, 2), PATIENTS),
        make_finished(folder, "usam@none", "usam", (1, 1), PATIENTS),
        make_finished(folder, "net_&_x", "/some/net_&_x.py", (0, 1), PATIENTS),
    ]
    return make_table(finished, "usam@none")


def test_table_has_means_over_seeds_and_paper_rows(table):
    swin, usam, own = table["rows"]
    moved = [pooled_dice(x) for x in (3, 2)]
    assert swin["dice"]["mean"]["mean"] == pytest.approx(np.mean(moved))
    assert swin["dice"]["mean"]["sd"] == pytest.approx(np.std(moved, ddof=1))
    assert swin["paper"]["dice"]["mean"] == 64.17 and usam["paper"]["dice"]["mean"] == 69.28
    assert own["network"] == "net_&_x" and own["paper"] is None


def pooled_dice(shift: int, chosen=range(NUM_CASES)) -> float:
    truth = make_truth()[list(chosen)].reshape(-1, SIZE, SIZE)
    return pooled_scores(count(truth, np.roll(truth, shift, -1)), CLASSES).mean_dice


def test_interval_resamples_whole_patients(table, monkeypatch):
    summaries = [{"metric_per_case": [], "classes": CLASSES}]
    for i, patient in enumerate(PATIENTS):
        truth = make_truth()[i]
        counts = count(truth, np.roll(truth, 3, -1))
        pixels = sum_by_case(counts, ["x"] * DEPTH)["x"]
        case = {"case": f"case_{i}", "patient": patient, "pixels": pixels}
        summaries[0]["metric_per_case"].append(case)
    # Two resamples: patient a twice with b, c, d, and all patients once.
    draws = np.array([[2, 1, 1, 1, 0], [1, 1, 1, 1, 1]], float)
    monkeypatch.setattr(network_table, "bootstrap_counts", lambda n: draws[:, :n])
    low, high = network_table.pooled_interval(summaries)
    expected = sorted([pooled_dice(3, [0, 1, 0, 1, 2, 3, 4]), pooled_dice(3)])
    assert [low, high] == pytest.approx(np.percentile(expected, [2.5, 97.5]))
    monkeypatch.undo()
    low, high = table["rows"][0]["ci95"]
    assert low < table["rows"][0]["dice"]["mean"]["mean"] < high
    assert (table["resampled"], table["num_resampled"]) == ("patients", 5)


def test_each_network_is_tested_against_the_reference(table):
    swin, usam, own = table["rows"]
    assert usam["against"] is None and table["against"] == "usam@none"
    assert swin["against"]["difference"] < 0 < own["against"]["difference"]
    assert swin["against"]["n"] == NUM_CASES
    assert swin["against"]["p_holm"] == pytest.approx(2 * swin["against"]["p"])


def test_table_without_patients_says_so(tmp_path):
    one = make_finished(tmp_path, "unet", "unet", (1,), [None] * NUM_CASES)
    made = make_table([one], "usam@none")
    assert made["resampled"] == "cases" and made["num_resampled"] == NUM_CASES
    assert made["against"] is None and made["rows"][0]["dice"]["mean"]["sd"] is None
    text = network_tables.write_markdown(tmp_path / "networks.md", made)
    assert "The data set does not name patients, so the intervals and tests treat cases" in text
    assert "No network is tested" in text and "minus usam@none" not in text


def test_markdown_and_latex_have_equal_cells(table, tmp_path):
    text = network_tables.write_markdown(tmp_path / "t.md", table)
    assert (tmp_path / "t.md").read_text() == text
    lines = [x for x in text.splitlines() if x.startswith("|")]
    assert len({x.count("|") for x in lines}) == 1 and len(lines) == 7
    assert lines[3].startswith("| paper: Swin-Unet |  | 57.62 | 40.46 | 70.73 | 54.72 | 64.17 |")
    assert "4 epochs, 40 steps of 8 slices of 24x24, seeds 0, 1 | cpu, 2 cores |" in lines[2]
    network_tables.write_latex(tmp_path / "t.tex", table)
    latex = (tmp_path / "t.tex").read_text()
    assert r"net\_\&\_x &" in latex and r"$\pm$" in latex and "±" not in latex
    rows = [x for x in latex.splitlines() if x.endswith(r"\\")]
    assert {x.replace(r"\&", "").count("&") for x in rows} == {lines[0].count("|") - 2}


def test_table_names_the_runs_without_a_result(table, tmp_path):
    text = network_tables.write_markdown(tmp_path / "t.md", table)
    assert "left out" not in text
    made = table | {"left_out": ["vnet3d, seed 0", "vnet3d, seed 1"]}
    text = network_tables.write_markdown(tmp_path / "t.md", made)
    assert "\nRuns without a result are left out: vnet3d, seed 0; vnet3d, seed 1.\n" in text


def test_numbers_have_three_digits_and_no_exponent():
    found = [network_tables.format_digits(x) for x in (6941.3, 103.41, 0.00139, 50.0)]
    assert found == ["6940", "103", "0.00139", "50"]


def test_budget_of_windows_counts_windows_not_slices(tmp_path):
    one = make_finished(tmp_path, "vnet3d", "vnet3d", (1,), PATIENTS, window=16)
    text = network_tables.write_markdown(tmp_path / "t.md", make_table([one], None))
    assert "4 epochs, 40 steps of 8 windows of 16 slices of 24x24, seed 0 |" in text


def test_csv_has_the_numbers_of_both_sources(table, tmp_path):
    network_tables.write_numbers(tmp_path / "t.csv", table)
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(x["row"], x["network"]) for x in rows[:2]] == [
        ("ours", "swin_unet"),
        ("paper", "swin_unet"),
    ]
    assert float(rows[0]["dice_mean"]) == table["rows"][0]["dice"]["mean"]["mean"]
    assert float(rows[1]["dice_mean"]) == 0.6417 and rows[1]["p_holm"] == ""
    assert rows[0]["seeds"] == "0 1" and float(rows[0]["flop"]) == 3e9


def test_error_boxes_surround_the_largest_errors():
    truth = np.zeros((100, 100), np.uint8)
    predicted = truth.copy()
    predicted[10:20, 30:50] = 1
    predicted[13:16, 52:54] = 2  # closer than two gaps: the same box
    truth[60:66, 70:76] = 2
    predicted[90, 90] = 1  # too small for a box
    gap = network_plots.GAP
    assert network_plots.error_boxes(truth, predicted) == [
        (30 - gap, 10 - gap, 24 + 2 * gap, 10 + 2 * gap),
        (70 - gap, 60 - gap, 6 + 2 * gap, 6 + 2 * gap),
    ]
    assert network_plots.error_boxes(truth, truth) == []


@pytest.mark.parametrize("size", [20, 40, 224])
def test_views_show_the_same_part_at_any_size(size):
    view = network_plots.find_view(size, np.array([0.75, 0.5, 0.2]))
    assert np.array(view) / size == pytest.approx([0.55, 0.3, 0.4], abs=1.01 / size)
    whole = network_plots.find_view(size, np.array([0.5, 0.5, 0.5]))
    assert whole == (0, 0, size)


def test_errors_that_fill_the_view_are_boxed_in_it():
    view = network_plots.View(10, 20, 8)
    truth = np.zeros((40, 40), np.uint8)
    axes = Figure().subplots()
    network_plots.draw_boxes(axes, truth, truth + 1, view)
    (box,) = axes.patches
    assert box.get_bbox().bounds == (9.5, 19.5, 8, 8)


def test_dice_of_a_slice_counts_errors_outside_the_view():
    truth = np.zeros((40, 40), np.uint8)
    truth[:4, :4] = 1
    predicted = truth.copy()
    predicted[30:34, 30:34] = 1
    assert network_plots.slice_dice(truth, predicted, CLASSES) == pytest.approx(2 / 3)


def test_plots_show_common_slices_of_any_size(table, tmp_path):
    network_plots.save_cost(tmp_path / "cost.png", table)
    assert (tmp_path / "cost.png").stat().st_size > 10_000
    shown = {"a": make_shown(32, ["x", "y"]), "b": make_shown(48, ["y", "z"])}
    path = tmp_path / "slices.png"
    assert network_plots.save_same_slices(path, shown, CLASSES) == ["y"]
    assert path.stat().st_size > 5_000
    apart = {"a": make_shown(32, ["x"]), "b": make_shown(32, ["z"])}
    assert network_plots.save_same_slices(tmp_path / "none.png", apart, CLASSES) == []
    assert not (tmp_path / "none.png").exists()
