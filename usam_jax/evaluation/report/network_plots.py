"""Plots of a comparison of networks: Dice against cost, and the same slices of all."""

import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import ndimage

from usam_jax.data.class_names import MEAN
from usam_jax.evaluation.pixel_counts import count_pixels, pooled_scores
from usam_jax.evaluation.report.plots import find_errors, region_of_interest
from usam_jax.utils.formatting import percent
from usam_jax.utils.plotting import class_colours, outline, save_figure

BOX_COLOUR = "#f0e442"
MOST_BOXES = 3  # in one panel
BOX_SHARE = 2.5e-3  # of the panel's pixels: smaller errors are not boxed
GAP = 2  # pixels: errors that are closer share a box
MOST_COLUMNS = 8  # panels next to each other

PARTS = ("image", "truth", "predicted")

Shown = dict[str, np.ndarray]  # names and PARTS of `network_run.write_shown`


class View(NamedTuple):
    """The square part of a slice that a panel shows, in pixels."""

    left: int
    top: int
    side: int

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Return the part of labels [s s]."""
        return labels[self.top : self.top + self.side, self.left : self.left + self.side]


def save_cost(path: pathlib.Path, table: dict[str, Any]) -> None:
    """Plot the pooled mean Dice with its interval against GFLOP, a marker per network."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab20"]
    for i, row in enumerate(table["rows"]):
        dice, flop = row["dice"][MEAN]["mean"], row["flop"] / 1e9
        if dice is None:
            continue
        colour, marker = colours(i % 20), "os^D"[i // 20 % 4]
        label = f"{row['name']} ({row['parameters'] / 1e6:.3g} M)"
        axes.plot(flop, 100 * dice, marker, c=colour, ms=8, mec="black", mew=0.5, label=label)
        if row["ci95"]:
            low, high = (100 * x for x in row["ci95"])
            axes.plot([flop, flop], [low, high], c=colour, lw=1.5, zorder=1)
        if row["paper"]:
            printed = row["paper"]["dice"][MEAN]
            axes.plot(flop, printed, marker, c="none", ms=8, mec=colour, mew=1.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("GFLOP of one slice (logarithmic)")
    axes.set_ylabel("mean Dice, pooled (%)")
    axes.grid(alpha=0.3)
    hollow = "; hollow: the paper" if any(x["paper"] for x in table["rows"]) else ""
    title = f"lines: 95 % intervals over {table['num_resampled']} {table['resampled']}{hollow}"
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    save_figure(figure, path)


def error_boxes(truth: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return x, y, width and height of boxes around the largest errors, the largest first.

    `truth` and `predicted` are uint8[h w]. Errors closer than 2 * GAP pixels share a box.
    """
    wrong = find_errors(truth, predicted) > 0
    near = ndimage.binary_dilation(wrong, np.ones((3, 3)), iterations=GAP)
    groups, count = ndimage.label(near, np.ones((3, 3)))
    sizes = np.bincount(groups[wrong], minlength=count + 1)[1:]
    places, boxes = ndimage.find_objects(groups), []
    for i in np.argsort(-sizes, kind="stable")[:MOST_BOXES].tolist():
        if sizes[i] >= BOX_SHARE * truth.size:
            rows, columns = places[i]
            boxes.append(
                (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            )
    return boxes


def save_same_slices(
    path: pathlib.Path, shown: dict[str, Shown], classes: tuple[str, ...]
) -> list[str]:
    """Plot the slices that all networks show: truth, then each network with its errors boxed.

    Panels are views around the truth; their titles have the Dice of the whole slice. `shown` holds
    the slices of each network by name; their sizes may differ. Returns the names of the slices,
    none of which is drawn if there are no common ones.
    """
    names = common_names(list(shown.values()))
    if not names:
        return []
    first, colours = next(iter(shown.values())), class_colours(len(classes))
    panels = 1 + len(shown)
    columns = min(panels, MOST_COLUMNS)
    height = -(-panels // columns)  # rows of panels for one slice
    figure = Figure(figsize=(2.2 * columns, 2.4 * height * len(names) + 0.9), layout="constrained")
    figure.suptitle("around the truth, with the Dice of the whole slice", fontsize=9)
    grid = figure.subplots(height * len(names), columns, squeeze=False)
    for number, name in enumerate(names):
        axes = grid[number * height : (number + 1) * height].ravel()
        image, truth = (pick(first, name, x) for x in ("image", "truth"))
        centre = np.array(region_of_interest(truth)) / len(truth)
        draw_panel(axes[0], image, truth, colours, find_view(len(truth), centre))
        axes[0].set_title("truth", fontsize=8)
        axes[0].set_ylabel(name, fontsize=8, parse_math=False)
        for ax, (network, arrays) in zip(axes[1:], shown.items(), strict=False):
            image, truth, predicted = (pick(arrays, name, x) for x in PARTS)
            view = find_view(len(truth), centre)
            draw_panel(ax, image, predicted, colours, view)
            draw_boxes(ax, truth, predicted, view)
            dice = percent(slice_dice(truth, predicted, classes), 1)
            ax.set_title(f"{network}: {dice} %", fontsize=8, parse_math=False)
        for ax in axes[panels:]:
            ax.set_axis_off()
    handles = [Patch(color=c, label=x) for c, x in zip(colours, classes[1:], strict=True)]
    handles.append(Patch(fc="white", ec=BOX_COLOUR, label="error"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(9, len(handles)), fontsize=8
    )
    save_figure(figure, path)
    return names


def slice_dice(truth: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> float | None:
    """Return the mean Dice over the classes that truth or prediction, uint8[s s], have."""
    p, y = (jnp.asarray(x[None], jnp.int32) for x in (predicted, truth))
    counts = count_pixels(p, y, jnp.ones(1, bool), len(classes))
    return pooled_scores(np.asarray(counts), classes).mean_dice


def common_names(shown: list[Shown]) -> list[str]:
    """Return the names of the slices that all networks show, in the order of the first."""
    if not shown:
        return []
    common = set.intersection(*(set(x["names"].tolist()) for x in shown))
    return [x for x in shown[0]["names"].tolist() if x in common]


def pick(arrays: Shown, name: str, what: str) -> np.ndarray:
    """Return the image, truth or prediction uint8[s s] of the slice of that name."""
    return arrays[what][arrays["names"].tolist().index(name)]


def find_view(size: int, centre: np.ndarray) -> View:
    """Return the part of a slice of `size` pixels that panels show.

    `centre` is x, y and half the width, as shares of the size.
    """
    x, y, half = centre * size
    side = round(2 * half)
    left, top = (min(max(round(at - half + 0.5), 0), size - side) for at in (x, y))
    return View(left, top, side)


def draw_panel(
    axes: Any, image: np.ndarray, labels: np.ndarray, colours: list[Any], view: View
) -> None:
    """Draw labels over an image."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    outline(axes, labels, colours)
    axes.set_xlim(view.left - 0.5, view.left + view.side - 0.5)
    axes.set_ylim(view.top + view.side - 0.5, view.top - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_boxes(axes: Any, truth: np.ndarray, predicted: np.ndarray, view: View) -> None:
    """Draw the boxes of the errors in a view, also where they lie on the panel's frame."""
    for x, y, w, h in error_boxes(view.of(truth), view.of(predicted)):
        corner = (view.left + x - 0.5, view.top + y - 0.5)
        box = Rectangle(corner, w, h, fill=False, ec=BOX_COLOUR, lw=1.2, clip_on=False, zorder=5)
        axes.add_patch(box)
