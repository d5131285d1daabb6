"""What people look at: the table of an evaluation, and pictures of truth beside prediction."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from usam_jax.data.packed import Packed
from usam_jax.data.prompts import BACKGROUND, FOREGROUND, make_add_prompts
from usam_jax.files import replacing, write_json

matplotlib.use("Agg")

TWO_CLASSES = ("#00b4ff", "#ff5a36")  # blue and orange: told apart by colour-blind eyes


def class_colours(num_classes: int) -> list[Any]:
    """A colour for each class but the background."""
    if num_classes <= 3:
        return list(TWO_CLASSES[: num_classes - 1])
    return [colormaps["tab20"](i % 20) for i in range(num_classes - 1)]


def percent(value: float | None) -> str:
    return "absent" if value is None else f"{100 * value:.2f}"


def print_table(summary: dict[str, Any], folder: pathlib.Path) -> None:
    """Dice and IoU of each class and their mean, with where the prompts came from."""
    table = Table(title=f"{summary['split']}: {summary['num_slices']} slices", title_justify="left")
    table.add_column("class")
    table.add_column("Dice (%)", justify="right")
    table.add_column("IoU (%)", justify="right")
    for name, dice in summary["dice"].items():
        if name == "mean":
            table.add_section()
        table.add_row(name, percent(dice), percent(summary["iou"][name]))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"prompts: {summary['prompts']}")
    chosen = f"best on {summary['checkpoint_chosen_on']}"
    console.print(f"checkpoint: step {summary['checkpoint_step']}, {chosen}")
    console.print(f"summary and pictures: {folder}")


def print_seeds(seeds: list[int], summaries: list[dict[str, Any]], workdir: pathlib.Path) -> None:
    """Mean and deviation of Dice and IoU over runs with several seeds, also as `seeds.json`."""
    figures: dict[str, Any] = {"seeds": seeds}
    table = Table(title=f"{len(seeds)} seeds: {seeds}", title_justify="left")
    for name in ("class", "Dice (%)", "IoU (%)"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in summaries[0]["dice"]:
        cells = []
        for kind in ("dice", "iou"):
            values = [x[kind][name] for x in summaries if x[kind][name] is not None]
            spread: dict[str, Any] = {"values": values}
            if values:
                spread |= {
                    "mean": float(np.mean(values)),
                    "sd": float(np.std(values, ddof=min(1, len(values) - 1))),
                }
            figures.setdefault(kind, {})[name] = spread
            cells.append(
                f"{percent(spread['mean'])} +- {percent(spread['sd'])}" if values else "absent"
            )
        table.add_row(name, *cells)
    write_json(workdir / "seeds.json", figures)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"prompts: {summaries[0]['prompts']}")


def outline(axes: Any, label: np.ndarray, colours: list[Any]) -> None:
    for value, colour in enumerate(colours, start=1):
        if (label == value).any():
            axes.contour(label == value, levels=[0.5], colors=[colour], linewidths=1.2)


def region_of_interest(*labels: np.ndarray) -> tuple[float, float, float]:
    """Centre (x, y) and half width, in pixels, of a square that shows all foreground closely."""
    size = labels[0].shape[0]
    rows, columns = np.nonzero(np.any([label > 0 for label in labels], axis=0))
    if not rows.size:
        return size / 2, size / 2, size / 2
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    half = min(size / 2, max(size / 5, 0.6 * np.ptp(columns), 0.6 * np.ptp(rows)))
    inside = (half - 0.5, size - 0.5 - half)
    return float(np.clip(x, *inside)), float(np.clip(y, *inside)), float(half)


def draw_prompts(axes: Any, prompts: dict[str, np.ndarray]) -> None:
    if "points_xy" in prompts:
        for kind, colour in ((FOREGROUND, "yellow"), (BACKGROUND, "red")):
            points = prompts["points_xy"][prompts["point_labels"] == kind]
            axes.plot(points[:, 0], points[:, 1], "o", ms=3, mfc=colour, mec="black", mew=0.5)
    if "boxes_xyxy" in prompts:
        x0, y0, x1, y1 = prompts["boxes_xyxy"]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="yellow", lw=0.8))


def save_pictures(
    path: pathlib.Path,
    packed: Packed,
    split: str,
    predictions: dict[int, np.ndarray],
    config: ConfigDict,
) -> None:
    """A row for each predicted slice: the image and, closer, truth with prompts and prediction."""
    rows = sorted(predictions)
    images, labels = packed.images(split), packed.labels(split)
    slices = packed.slices(split)
    colours = class_colours(config.model.num_classes)
    add_prompts = make_add_prompts(config)
    figure = Figure(figsize=(12, 3 * len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        prompts = add_prompts({"label": np.array(labels[row])}, None)
        x, y, half = region_of_interest(labels[row], predictions[row])
        for ax in axes:
            ax.imshow(images[row], cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[0].set_ylabel(slices[row]["name"])
        axes[0].add_patch(
            Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, ec="white", lw=0.8)
        )
        for ax in axes[1:]:
            ax.set_xlim(x - half, x + half)
            ax.set_ylim(y + half, y - half)
        outline(axes[2], labels[row], colours)
        draw_prompts(axes[2], prompts)
        outline(axes[3], predictions[row], colours)
    for ax, title in zip(
        grid[0], ("image", "region", "truth and prompts", "prediction"), strict=True
    ):
        ax.set_title(title)
    names = config.data.classes[1:]
    patches = [Patch(color=c, label=name) for c, name in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(names), 6))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def save_progress(path: pathlib.Path, steps: list[dict[str, Any]], select_on: str) -> None:
    """Loss and Dice, learning rates and gradient norms over the steps of a run (metrics.jsonl)."""
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
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_legend(axes: Any, height: float) -> None:
    """The names of the lines, if there are some, beside the axes."""
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.08, height), fontsize=8)


def plot_named(axes: Any, steps: list[dict[str, Any]], prefix: str, **style: Any) -> None:
    """A line for each figure whose name begins with `prefix`."""
    names = dict.fromkeys(
        name for row in steps for name in row if name.startswith(prefix) and "skipped" not in name
    )
    for name in names:
        points = [(row["step"], row[name]) for row in steps if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), label=name.removeprefix(prefix), lw=1, **style)
