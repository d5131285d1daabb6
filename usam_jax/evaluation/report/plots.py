"""Plots of an evaluation: predicted slices, metrics by class, size and prompt jitter."""

import dataclasses
import pathlib
import textwrap
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator, ScalarFormatter

from usam_jax.data.class_names import MEAN
from usam_jax.data.prompts import BACKGROUND, FOREGROUND
from usam_jax.evaluation.case_metrics import MISSED, OK
from usam_jax.utils.formatting import percent, scale_of
from usam_jax.utils.plotting import (
    TWO_SERIES,
    class_colours,
    outline,
    save_figure,
)

# Each set is distinguishable with any common colour-vision deficiency.
METRIC_COLOURS = {"Dice": TWO_SERIES[0], "NSD": TWO_SERIES[1], "HD95": "#999999"}
FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS = 1, 2, 3
ERRORS = {"false positive": "#e83fb8", "false negative": "#00b487", "wrong class": "#f0e442"}
POINTS = {FOREGROUND: ("foreground point", "yellow"), BACKGROUND: ("background point", "red")}

LABEL_WIDTH = 34  # characters that fit along a row of slices
MAX_DOTS = 200  # cases; more dots would hide the boxes
UPRIGHT_NAMES = 5  # classes; more labels have to be slanted
DISTANCE_TICKS = (0, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclasses.dataclass(frozen=True)
class ReportSlice:
    """A predicted slice that the report shows.

    `image`, `truth` and `predicted` are uint8[h w]. `prompts` holds `points_xy` float32[p 2],
    `point_labels` int32[p], `boxes_xyxy` float32[4] and `prompts_given` bool[p+1], whose last entry
    is that of the box. `dice` is the mean over the classes of the case, 0 to 1. `why` says why the
    slice was chosen.
    """

    case: str
    name: str
    why: str
    dice: float | None
    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    prompts: dict[str, np.ndarray]


def find_errors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Kind of error of each pixel, uint8[h w]: 0, FALSE_POSITIVE, FALSE_NEGATIVE or WRONG_CLASS."""
    cases = [truth == predicted, truth == 0, predicted == 0]
    return np.select(cases, [0, FALSE_POSITIVE, FALSE_NEGATIVE], WRONG_CLASS).astype(np.uint8)


def region_of_interest(*labels: np.ndarray) -> tuple[float, float, float]:
    """Centre (x, y) and half width, in pixels, of a square closely around all foreground."""
    size = labels[0].shape[0]
    rows, columns = np.nonzero(np.any([label > 0 for label in labels], axis=0))
    if not rows.size:
        return size / 2, size / 2, size / 2
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    half = min(size / 2, max(size / 5, 0.6 * np.ptp(columns), 0.6 * np.ptp(rows)))
    inside = (half - 0.5, size - 0.5 - half)
    return float(np.clip(x, *inside)), float(np.clip(y, *inside)), float(half)


def draw_prompts(axes: Any, prompts: dict[str, np.ndarray]) -> None:
    """Draw the points and the box that are given."""
    points_given, box_given = prompts["prompts_given"][:-1], prompts["prompts_given"][-1]
    for kind, (_, colour) in POINTS.items():
        points = prompts["points_xy"][points_given & (prompts["point_labels"] == kind)]
        axes.plot(points[:, 0], points[:, 1], "o", ms=3, mfc=colour, mec="black", mew=0.5)
    if box_given:
        x0, y0, x1, y1 = prompts["boxes_xyxy"]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="yellow", lw=0.8))


def draw_errors(axes: Any, image: np.ndarray, errors: np.ndarray) -> None:
    """Draw the errors of `find_errors` over the dimmed image."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=2 * 255)
    wrong = np.ma.masked_equal(errors, 0)
    colours = ListedColormap(list(ERRORS.values()))
    axes.imshow(wrong, cmap=colours, vmin=1, vmax=len(ERRORS), interpolation="nearest")


def save_slices(
    path: pathlib.Path, slices: list[ReportSlice], classes: tuple[str, ...], title: str = ""
) -> None:
    """Plot a row per slice: the image and, zoomed in, truth with prompts, prediction and errors."""
    colours = class_colours(len(classes))
    figure = Figure(figsize=(12, 3 * len(slices) + 0.9 + 0.05 * len(classes)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    grid = figure.subplots(len(slices), 4, squeeze=False)
    for axes, one in zip(grid, slices, strict=True):
        x, y, half = region_of_interest(one.truth, one.predicted)
        for ax in axes:
            ax.imshow(one.image, cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[0].add_patch(
            Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, ec="white", lw=0.8)
        )
        outline(axes[1], one.truth, colours)
        draw_prompts(axes[1], one.prompts)
        outline(axes[2], one.predicted, colours)
        draw_errors(axes[3], one.image, find_errors(one.truth, one.predicted))
        for ax in axes[1:]:
            ax.set_xlim(x - half, x + half)
            ax.set_ylim(y + half, y - half)
        dice = "not defined" if one.dice is None else f"{percent(one.dice, 1)} %"
        lines = (one.name, one.why, f"Dice of the case: {dice}")
        label = "\n".join(textwrap.fill(line, LABEL_WIDTH) for line in lines)
        axes[0].set_ylabel(label, fontsize=9, parse_math=False)
    titles = ("image", "truth and prompts", "prediction", "errors")
    for ax, text in zip(grid[0], titles, strict=True):
        ax.set_title(text)
    groups = [[Patch(color=c, label=x) for c, x in zip(colours, classes[1:], strict=True)]]
    groups.append([Patch(color=colour, label=name) for name, colour in ERRORS.items()])
    groups.append(prompt_marks(slices))
    draw_legend(figure, [x for x in groups if x])
    save_figure(figure, path)


def prompt_marks(slices: list[ReportSlice]) -> list[Any]:
    """Legend entries for the kinds of prompt that are given in some slice."""
    given = [x.prompts["point_labels"][x.prompts["prompts_given"][:-1]] for x in slices]
    marks: list[Any] = [
        Line2D([], [], ls="", marker="o", ms=5, mfc=colour, mec="black", mew=0.5, label=name)
        for kind, (name, colour) in POINTS.items()
        if any((labels == kind).any() for labels in given)
    ]
    if any(x.prompts["prompts_given"][-1] for x in slices):
        marks.append(Patch(fc="white", ec="goldenrod", label="box"))
    return marks


def draw_legend(figure: Figure, groups: list[list[Any]]) -> None:
    """Draw a legend below the slices in which each group starts a new row."""
    columns = min(6, max(len(group) for group in groups))
    cells: list[Any] = []
    for group in groups:
        blanks = -len(group) % columns
        cells += group + [Patch(alpha=0, label=" ")] * blanks
    # Matplotlib fills a legend column by column.
    by_column = [x for i in range(columns) for x in cells[i::columns]]
    figure.legend(handles=by_column, loc="outside lower center", ncols=columns, fontsize=9)


def save_boxes(path: pathlib.Path, summary: dict[str, Any]) -> None:
    """Box plots over the cases, by class: Dice and NSD above, HD95 below."""
    names, unit = summary["classes"][1:], summary["distance_unit"]
    dots = summary["num_cases"] <= MAX_DOTS
    figure = Figure(figsize=(max(6.5, 1.5 + 0.7 * len(names)), 8.5), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    shares = {x: case_values(summary, x) for x in ("Dice", "NSD")}
    draw_boxes(top, shares, names, dots)
    top.set_ylabel("Dice and NSD (%)")
    top.set_ylim(-3, 103)
    patches = [Patch(color=METRIC_COLOURS[x], label=x) for x in shares]
    top.legend(handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    draw_boxes(bottom, {"HD95": case_values(summary, "HD95")}, names, dots)
    # Logarithmic: a missed class counts the diagonal of the volume, which would flatten all boxes.
    bottom.set_yscale("symlog", linthresh=10)
    highest = max(10.0, 1.2 * bottom.get_ylim()[1])
    bottom.set_yticks([x for x in DISTANCE_TICKS if x <= highest])
    bottom.yaxis.set_major_formatter(ScalarFormatter())
    bottom.yaxis.set_minor_locator(NullLocator())
    bottom.set_ylim(-0.5, highest)
    bottom.set_ylabel(f"HD95 ({unit}), logarithmic above 10")
    save_figure(figure, path)


def case_values(summary: dict[str, Any], metric: str) -> list[np.ndarray]:
    """Values float64[n] of a metric in shown units, per foreground class, where it is defined."""
    cases = [x["metrics"] for x in summary["metric_per_case"]]
    numbers = [str(i) for i in range(1, len(summary["classes"]))]
    by_class = [[x[i][metric] for x in cases if x[i][metric] is not None] for i in numbers]
    return [scale_of(metric) * np.array(values, float) for values in by_class]


def draw_boxes(
    axes: Any, by_metric: dict[str, list[np.ndarray]], names: list[str], dots: bool
) -> None:
    """Draw one box per class and metric, side by side, with a dot per case if `dots`."""
    rng = np.random.default_rng(0)
    width = 0.7 / len(by_metric)
    middle = (len(by_metric) - 1) / 2
    for i, (metric, values) in enumerate(by_metric.items()):
        colour = METRIC_COLOURS[metric]
        places = np.arange(len(names)) + (i - middle) * width
        axes.boxplot(
            values,
            positions=places,
            widths=0.8 * width,
            manage_ticks=False,
            showfliers=not dots,
            patch_artist=True,
            boxprops={"fc": colour, "alpha": 0.5},
            medianprops={"color": "black"},
            flierprops={"marker": ".", "ms": 3},
        )
        for place, of_class in zip(places, values, strict=True) if dots else ():
            x = place + width * rng.uniform(-0.25, 0.25, of_class.size)
            axes.plot(x, of_class, "o", ms=2.5, mfc=colour, mec="black", mew=0.3, zorder=3)
    counts = [x.size for x in next(iter(by_metric.values()))]
    labels = [f"{name}\nn = {n}" for name, n in zip(names, counts, strict=True)]
    slant: dict[str, Any] = {}
    if len(names) > UPRIGHT_NAMES:
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor", "fontsize": 9}
    axes.set_xticks(range(len(names)), labels, **slant)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="y", alpha=0.3)


def save_sizes(path: pathlib.Path, summary: dict[str, Any], name: str) -> None:
    """Plot the Dice of the class `name` in each case against its volume in the truth."""
    number = str(summary["classes"].index(name))
    scores = [x["metrics"][number] for x in summary["metric_per_case"]]
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for status, marker, colour in ((OK, "o", TWO_SERIES[0]), (MISSED, "X", TWO_SERIES[1])):
        # Dice of a missed class is None under the policy `skip`; it has no overlap, so draw it at 0.
        points = [
            (x["reference_volume"], 100 * (x["Dice"] or 0)) for x in scores if x["status"] == status
        ]
        if points:
            label = f"{'missed' if status == MISSED else 'predicted'} (n = {len(points)})"
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, ls="", c=colour, mec="black", mew=0.4, alpha=0.8, label=label)
    if axes.lines:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
        axes.grid(alpha=0.3)
    else:
        words = f"No case has {name} in the ground truth."
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center")
        axes.set_xticks([])
    axes.set_xlabel(f"volume of the {name} in the ground truth ({summary['volume_unit']})")
    axes.set_ylabel("Dice of the case (%)")
    axes.set_ylim(-5, 105)
    save_figure(figure, path)


def save_prompt_jitter(
    path: pathlib.Path,
    noise: list[dict[str, Any]],
    classes: tuple[str, ...],
    automatic: float | None = None,
) -> None:
    """Plot pooled Dice of each class and their mean against the prompt jitter.

    `noise` is a list of {"pixels": x, "dice": {class: 0 to 1 or None}}, `classes` starts with the
    background, and `automatic` is the mean Dice without prompts.
    """
    names = classes[1:]
    figure = Figure(figsize=(7.5, max(4.5, 1 + 0.22 * len(names))), layout="constrained")
    axes = figure.subplots()
    pixels = [x["pixels"] for x in noise]
    lines = [(x, c, 1.2) for x, c in zip(names, class_colours(len(classes)), strict=True)]
    for name, colour, thickness in (*lines, (MEAN, "black", 3.0)):
        dice = [np.nan if x["dice"][name] is None else 100 * x["dice"][name] for x in noise]
        axes.plot(pixels, dice, "o-", c=colour, lw=thickness, ms=4, label=name)
    if automatic is not None:
        axes.axhline(100 * automatic, c="black", ls="--", lw=1.2, label="mean without prompts")
    axes.set_title("Prompts come from the ground truth", fontsize=11)
    axes.set_xlabel("prompt jitter (pixels)")
    axes.set_ylabel("pooled Dice (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    save_figure(figure, path)
