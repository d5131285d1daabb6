"""Plots of the interactive evaluation: Dice against clicks, slices before and after them."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from usam_jax.data.packed.format import Packed
from usam_jax.evaluation.interactive import ClickRecord
from usam_jax.evaluation.report.plots import region_of_interest
from usam_jax.utils.formatting import percent
from usam_jax.utils.plotting import class_colours, outline, save_figure

NUM_SLICES = 5  # that the picture of corrections shows, each of another case
SHOWN = (0, 1, 3)  # clicks
BACKGROUND_COLOUR = "white"
MOST_COLUMNS = 6  # of the legend


@dataclasses.dataclass(frozen=True)
class Corrected:
    """A slice before and after the clicks of the robot user.

    `predicted` uint8[c h w], `dice` and `clicks` (x, y, class) belong to each count of `counts`.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    counts: tuple[int, ...]
    predicted: np.ndarray
    dice: tuple[float, ...]
    clicks: tuple[tuple[tuple[int, int, int], ...], ...]


def choose_slices(record: ClickRecord, packed: Packed, split: str) -> np.ndarray:
    """Return the rows of the worst automatic slices of up to NUM_SLICES cases, worst first.

    Slices with less foreground than half of the average are left out.
    """
    pixels = record.counts[:, 0, 1:][..., [0, 2]].sum((1, 2))
    starts = [case["row"] for case in packed.cases(split)]
    cases = np.searchsorted(starts, record.rows, side="right")
    chosen: dict[int, int] = {}
    for i in np.argsort(record.dice[:, 0], kind="stable").tolist():
        if pixels[i] >= 0.5 * pixels.mean():
            chosen.setdefault(int(cases[i]), int(record.rows[i]))
    return np.array(list(chosen.values())[:NUM_SLICES], int)


def make_corrected(record: ClickRecord, packed: Packed, split: str) -> list[Corrected]:
    """Return the slices of a record with its predictions."""
    maximum = record.clicked.shape[1]
    counts = tuple(x for x in SHOWN if x <= maximum)
    slices = []
    for i, row in enumerate(record.rows.tolist()):
        made = [
            (*record.xy[i, n].tolist(), int(record.labels[i, n]))
            for n in range(maximum)
            if record.clicked[i, n]
        ]
        slices.append(
            Corrected(
                packed.slices(split)[row]["name"],
                np.array(packed.images(split)[row]),
                np.array(packed.labels(split)[row]),
                counts,
                record.predicted[i][list(counts)],
                tuple(record.dice[i, list(counts)].tolist()),
                tuple(tuple(made[:n]) for n in counts),
            )
        )
    return slices


def save_corrections(path: pathlib.Path, slices: list[Corrected], classes: tuple[str, ...]) -> None:
    """Plot a row per slice: the truth, the automatic prediction, and those after clicks."""
    colours = class_colours(len(classes))
    columns = 1 + len(slices[0].counts)
    figure = Figure(figsize=(3 * columns, 3 * len(slices) + 0.8), layout="constrained")
    grid = figure.subplots(len(slices), columns, squeeze=False)
    for axes, one in zip(grid, slices, strict=True):
        x, y, half = region_of_interest(one.truth, *one.predicted)
        panels = [one.truth, *one.predicted]
        for ax, labels in zip(axes, panels, strict=True):
            ax.imshow(one.image, cmap="gray", vmin=0, vmax=255)
            outline(ax, labels, colours)
            ax.set_xlim(x - half, x + half)
            ax.set_ylim(y + half, y - half)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[0].set_ylabel(one.name, fontsize=9, parse_math=False)
        axes[0].set_title("truth", fontsize=9)
        for ax, count, dice, clicks in zip(axes[1:], one.counts, one.dice, one.clicks, strict=True):
            words = f"{count} click{'s' * (count > 1)}" if count else "automatic"
            ax.set_title(f"{words}: Dice {percent(dice, 1)} %", fontsize=9)
            for click_x, click_y, label in clicks:
                colour = colours[label - 1] if label else BACKGROUND_COLOUR
                ax.plot(click_x, click_y, "o", ms=6, mfc=colour, mec="black", mew=1)
    handles: list[Any] = [
        Patch(color=c, label=x) for c, x in zip(colours, classes[1:], strict=True)
    ]
    named = zip(classes, [BACKGROUND_COLOUR, *colours], strict=True)
    handles += [
        Line2D([], [], ls="", marker="o", ms=6, mfc=c, mec="black", label=f"click: {name}")
        for name, c in named
    ]
    across = min(len(handles), MOST_COLUMNS)
    figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize=9)
    save_figure(figure, path)


def save_curve(path: pathlib.Path, clicks: dict[str, Any]) -> None:
    """Save the plot of `draw_curve`."""
    save_figure(draw_curve(clicks), path)


def draw_curve(clicks: dict[str, Any]) -> Figure:
    """Plot Dice against clicks: the mean of the slices with the targets, and each class."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    dice = 100 * np.array(clicks["dice"])
    lowest = float(dice.min())
    axes.plot(dice, "o-", c="black", ms=4, label="mean of the slices")
    colours = class_colours(1 + len(clicks["classes"]))
    for (name, found), colour in zip(clicks["classes"].items(), colours, strict=True):
        values = np.array([np.nan if x is None else 100 * x for x in found["dice"]])
        axes.plot(values, c=colour, lw=1.2, label=f"{name}, pooled")
        lowest = min(lowest, float(np.nanmin(values, initial=100)))
    for target, number in clicks["number_of_clicks"].items():
        axes.axhline(float(target), c="#999999", lw=0.8, ls="--")
        words = f"{target} %: {number['mean']:.1f} clicks"
        axes.annotate(
            words,
            (1.01, float(target)),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.set_xlabel("clicks of the robot user")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("Dice (%)")
    axes.set_ylim(min(50.0, lowest - 3), 100)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure
