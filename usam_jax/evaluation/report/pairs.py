"""Plot of a comparison: each case of evaluation B against the same case of A."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from usam_jax.data.class_names import MEAN
from usam_jax.evaluation.summary import LOWER_IS_BETTER
from usam_jax.utils.formatting import scale_of, unit_of
from usam_jax.utils.plotting import TWO_CLASSES, save_figure

CHANGES = {"B better": TWO_CLASSES[0], "A better": TWO_CLASSES[1], "equal": "#888888"}


def save_pairs(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Plot a comparison: B against A, a panel per class and a dot per case."""
    metric = result["metric"]
    names = [name for name, x in result["classes"].items() if name != MEAN and x["n"]]
    columns = max(1, int(np.ceil(np.sqrt(len(names)))))
    rows = max(1, -(-len(names) // columns))
    side = max(2.7, 5.4 / columns)  # inches of a panel
    figure = Figure(figsize=(side * columns + 0.6, side * rows + 1.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names, strict=False):
        pairs = [x for x in result["cases"] if x["class"] == name and x["difference"] is not None]
        draw_pairs(axes, pairs, metric)
        difference = scale_of(metric) * result["classes"][name]["difference"]
        axes.set_title(
            f"{name} (n = {len(pairs)}): {difference:+.2f}", fontsize=9, parse_math=False
        )
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    title = (
        f"{metric} ({unit_of(metric, result)}) of each case, and the mean of B - A over the cases"
    )
    figure.suptitle(
        f"{title}\nA: {result['a']}\nB: {result['b']}",
        fontsize=9,
        x=0.02,
        ha="left",
        parse_math=False,
    )
    handles = [
        Line2D([], [], marker="o", ls="", color=colour, label=label)
        for label, colour in CHANGES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, path)


def draw_pairs(axes: Any, pairs: list[dict[str, Any]], metric: str) -> None:
    """Draw B over A and the diagonal on which both are equal."""
    a, b = (scale_of(metric) * np.array([x[side] for x in pairs]) for side in ("a", "b"))
    gain = (a - b) if metric in LOWER_IS_BETTER else (b - a)
    change = np.select([gain > 0, gain < 0], ["B better", "A better"], "equal")
    both = np.concatenate([a, b])
    margin = 0.08 * np.ptp(both) or 0.5
    limits = (both.min() - margin, both.max() + margin)
    axes.plot(limits, limits, color="#bbbbbb", lw=1, zorder=0)
    axes.scatter(a, b, c=[CHANGES[x] for x in change.tolist()], s=18, alpha=0.8, linewidths=0)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.set_xlabel("A", fontsize=8)
    axes.set_ylabel("B", fontsize=8)
    axes.tick_params(labelsize=7)
