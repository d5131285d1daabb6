"""Training curves: losses, Dice, learning rates and gradient norms over the steps."""

import pathlib
from typing import Any

from matplotlib.figure import Figure

from usam_jax.utils.plotting import save_figure


def save_progress(path: pathlib.Path, steps: list[dict[str, Any]], select_on: str) -> None:
    """Plot the losses and Dice, the learning rates and the gradient norms of a run to `path`.

    `steps` are the rows of `metrics.jsonl`, a dict per step. `select_on` is the split whose Dice
    chooses the best epoch.
    """
    figure = Figure(figsize=(10, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    plot_named(top, steps, "train/", alpha=0.8)
    top.set_ylabel("training loss")
    right = top.twinx()
    plot_named(right, steps, f"{select_on}/dice/", marker="o", ms=3, ls="--")
    right.set_ylabel(f"{select_on} Dice")
    right.set_ylim(0, 1)
    for axes, height in ((top, 1.0), (right, 0.4)):
        draw_legend(axes, height)
    for axes, prefix, label in (
        (middle, "lr/", "learning rate"),
        (bottom, "grad_norm/", "gradient"),
    ):
        plot_named(axes, steps, prefix)
        axes.set_yscale("log")
        axes.set_ylabel(label)
        draw_legend(axes, 1.0)
    bottom.set_xlabel("step")
    save_figure(figure, path)


def draw_legend(axes: Any, height: float) -> None:
    """Draw the legend to the right of the axes, with its top at `height`, if they have lines."""
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.08, height), fontsize=8)


def plot_named(axes: Any, steps: list[dict[str, Any]], prefix: str, **style: Any) -> None:
    """Plot a line for each metric whose name begins with `prefix`."""
    names = dict.fromkeys(
        name for row in steps for name in row if name.startswith(prefix) and "skipped" not in name
    )
    for name in names:
        points = [(row["step"], row[name]) for row in steps if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label=name.removeprefix(prefix), lw=1, **style)
