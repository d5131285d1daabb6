"""Compares two evaluations of the same cases, pair by pair.

    python -m tools.compare A B [--metric=Dice] [--out=DIR]
    python -m tools.compare A B --reference=LABELS [--metric=Dice] [--out=DIR] [--classes=...] ...

A and B: folders with a summary.json, of this program (evaluated or scored) or of nnU-Net, or a run's
folder with one evaluation in it. With --reference they hold predictions (NIfTI), which are scored
first; see tools/score.py for --classes, --tolerance and --policy.
Differences are B - A. DIR gets comparison.json, comparison.csv and comparison.png.

Exit code 3: the two cannot be compared.
"""

import csv
import pathlib
import sys
from typing import Any

import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict
from rich.table import Table

from tools.score import OUT, require_writable, score
from usam_jax.evaluation.comparison import (
    LOWER_IS_BETTER,
    MEAN,
    Side,
    compare,
    make_side,
    read_side,
)
from usam_jax.evaluation.report.case_table import (
    NONE,
    format_interval,
    format_value,
    print_wide,
    unit_of,
)
from usam_jax.evaluation.summary import METRICS
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError
from usam_jax.utils.files import atomic_write, write_json

matplotlib.use("Agg")

REFERENCE = flags.DEFINE_string("reference", None, "Labels to score A and B against.")
METRIC = flags.DEFINE_enum("metric", "Dice", list(METRICS), "What is compared.")
SCORING_FLAGS = ("classes", "tolerance", "policy")
COLUMNS = ("case", "class", "metric", "a", "b", "difference")
P_NOTE = "p: two-sided Wilcoxon signed-rank test; p (Holm) allows for the number of classes, p not"
# Colour-blind eyes tell them apart.
COLOURS = {"B better": "#00b4ff", "A better": "#ff5a36", "equal": "#888888"}


def load_side(folder: pathlib.Path) -> Side:
    """What is compared: a summary that is there, or one made of predictions."""
    if REFERENCE.value is None:
        return read_side(folder)
    console.info(f"{folder}:")
    return make_side(score(folder, pathlib.Path(REFERENCE.value)), folder)


def format_p(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def print_comparison(result: dict[str, Any]) -> None:
    """The table of classes, that of the cases that changed most, and how to read them."""
    metric = result["metric"]
    unit = unit_of(metric, result)
    table = Table(
        title=f"{metric} ({unit}) of {result['num_cases']} cases\nA: {result['a']}\nB: {result['b']}",
        title_justify="left",
    )
    for name in ("class", "pairs", "left out", "A", "B", "B - A [95 %]", "median"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in ("B better", "equal", "A better", "p", "p (Holm)"):
        table.add_column(name, justify="right")
    for name, figures in result["classes"].items():
        if name == MEAN:
            table.add_section()
        table.add_row(
            name,
            str(figures["n"]),
            str(figures["left_out"]),
            *(format_value(figures[x], metric) for x in ("a", "b")),
            format_value(figures["difference"], metric) + format_interval(figures["ci95"], metric),
            format_value(figures["median_difference"], metric),
            *(str(figures[x]) for x in ("b_better", "equal", "a_better")),
            format_p(figures["p"]),
            format_p(figures["p_holm"]) if "p_holm" in figures else "",
        )
    one_sided = sum(x["one_sided"] for x in result["classes"].values())
    notes = [
        P_NOTE,
        "left out: no figure in A, B or both; the mean is over the classes that have both",
    ]
    if one_sided:
        notes.append(
            f"note: {one_sided} of those left out have a figure in one of A and B, where the other "
            "has none; comparison.csv (--out) names them"
        )
    print_wide(table, *notes)
    if result["most_changed"]:
        print_wide(changes_table(result["most_changed"], metric))


def changes_table(rows: list[dict[str, Any]], metric: str) -> Table:
    table = Table(title="changed most", title_justify="left")
    for name in ("case", "class", "A", "B", "B - A", "status in A", "status in B"):
        table.add_column(name, justify="right" if name in ("A", "B", "B - A") else "left")
    for row in rows:
        figures = (format_value(row[x], metric) for x in ("a", "b", "difference"))
        table.add_row(row["case"], row["class"], *figures, row["a_status"], row["b_status"])
    return table


def draw_pairs(path: pathlib.Path, result: dict[str, Any]) -> None:
    """For each class B over A, a point for each pair; on the line they are equal."""
    metric = result["metric"]
    scale = 1.0 if metric == "HD95" else 100.0
    names = [name for name, x in result["classes"].items() if name != MEAN and x["n"]]
    columns = max(1, int(np.ceil(np.sqrt(len(names)))))
    rows = max(1, -(-len(names) // columns))
    side = max(2.7, 5.4 / columns)  # inches of a panel
    figure = Figure(figsize=(side * columns + 0.6, side * rows + 1.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names, strict=False):
        pairs = [x for x in result["cases"] if x["class"] == name and x["difference"] is not None]
        draw_class(axes, pairs, scale)
        difference = scale * result["classes"][name]["difference"]
        axes.set_title(f"{name}: {difference:+.2f} (n = {len(pairs)})", fontsize=9)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    title = f"{metric} ({unit_of(metric, result)}) of each case, and the mean of B - A"
    sources = f"A (across): {result['a']}\nB (up): {result['b']}"
    figure.suptitle(f"{title}\n{sources}", fontsize=9, x=0.02, ha="left")
    handles = [
        Line2D([], [], marker="o", ls="", color=colour, label=label)
        for label, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_class(axes: Any, pairs: list[dict[str, Any]], scale: float) -> None:
    a, b = (scale * np.array([x[side] for x in pairs]) for side in ("a", "b"))
    gain = (a - b) if pairs[0]["metric"] in LOWER_IS_BETTER else (b - a)
    found = np.select([gain > 0, gain < 0], ["B better", "A better"], "equal")
    both = np.concatenate([a, b])
    margin = 0.08 * np.ptp(both) or 0.5
    limits = (both.min() - margin, both.max() + margin)
    axes.plot(limits, limits, color="#bbbbbb", lw=1, zorder=0)
    axes.scatter(a, b, c=[COLOURS[x] for x in found.tolist()], s=18, alpha=0.8, linewidths=0)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)


def write_comparison(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes `comparison.csv` (all pairs), `comparison.png` and `comparison.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(folder / "comparison.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(result["cases"])
    draw_pairs(folder / "comparison.png", result)
    write_json(folder / "comparison.json", result)


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """What the command line asks for."""
    if len(arguments) != 2:
        raise UsageError(f"found {arguments}, expected A B\n{__doc__}")
    if REFERENCE.value is None and (given := [x for x in SCORING_FLAGS if flags.FLAGS[x].present]):
        raise UsageError(
            f"--{' --'.join(given)}: goes with --reference, which scores A and B first"
        )
    if OUT.value:
        require_writable(pathlib.Path(OUT.value))
    a, b = (load_side(pathlib.Path(x)) for x in arguments)
    result = compare(a, b, METRIC.value)
    print_comparison(result)
    for warning in result["warnings"]:
        console.info(f"warning: {warning}")
    if OUT.value:
        write_comparison(pathlib.Path(OUT.value), result)
        console.info(f"{OUT.value}: comparison.json, comparison.csv, comparison.png")


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
