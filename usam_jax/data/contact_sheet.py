"""A contact sheet of a data set: slices with outlined labels, which make a flip obvious."""

import itertools
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from usam_jax.data.case import Case, Cases
from usam_jax.data.datasets.registry import get_spec
from usam_jax.data.packed.encode import pack_case
from usam_jax.utils import console
from usam_jax.utils.errors import DataError
from usam_jax.utils.parallel import ordered_map
from usam_jax.utils.plotting import class_colours, outline, save_figure

COLUMNS, ROWS = 6, 4
SIDES = {"R": (0.02, 0.5), "L": (0.98, 0.5), "A": (0.5, 0.97), "P": (0.5, 0.03)}


class Tile(NamedTuple):
    """A slice of the sheet: image and label uint8[h h]."""

    title: str
    image: np.ndarray
    label: np.ndarray


def save_contact_sheet(path: pathlib.Path, cases: Cases, settings: dict[str, Any]) -> None:
    """Draw random slices of random cases, as they are packed with `settings`.

    If the files give the patient's orientation, each slice is marked with the patient's right,
    left, front (A) and back (P). Cases that cannot be read are left out. Raises DataError if none
    is left.
    """
    tiles = pick_tiles(cases, settings)
    if not tiles:
        raise DataError(f"{path}: found no case that can be drawn")
    classes = settings["classes"]
    colours = class_colours(len(classes))
    rows = math.ceil(len(tiles) / COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.4 * rows + 0.8), layout="constrained")
    for ax in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        ax.axis("off")
    sides = SIDES if get_spec(settings["kind"]).oriented else {}
    for ax, tile in zip(figure.axes, tiles, strict=False):
        ax.imshow(tile.image, cmap="gray", vmin=0, vmax=255)
        outline(ax, tile.label, colours)
        ax.set_title(tile.title, fontsize=7)
        for side, (x, y) in sides.items():
            ax.text(
                x,
                y,
                side,
                transform=ax.transAxes,
                color="yellow",
                fontsize=7,
                ha="center",
                va="center",
            )
    patches = [Patch(color=c, label=name) for c, name in zip(colours, classes[1:], strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=8)
    save_figure(figure, path, dpi=130)


def pick_tiles(cases: Cases, settings: dict[str, Any]) -> list[Tile]:
    """Random slices, with foreground if possible, of random cases of the splits in turn."""
    rng = np.random.default_rng(0)
    shuffled = [
        [(split, found[i]) for i in rng.permutation(len(found)) if found[i].num_slices]
        for split, found in cases.items()
    ]
    chosen = [x for some in itertools.zip_longest(*shuffled) for x in some if x is not None]
    chosen = chosen[: COLUMNS * ROWS]
    # With few cases, several slices of each fill the sheet.
    each = math.ceil(COLUMNS * ROWS / max(len(chosen), 1))
    draws = rng.random((len(chosen), each))

    def make_tiles(number: int) -> list[Tile]:
        split, case = chosen[number]
        return read_tiles(split, case, draws[number], settings)

    with console.Progress("contact sheet", len(chosen), "cases") as bar:
        tiles = []
        for _, some in ordered_map(make_tiles, list(range(len(chosen)))):
            tiles += some
            bar.advance()
    return tiles[: COLUMNS * ROWS]


def read_tiles(split: str, case: Case, draws: np.ndarray, settings: dict[str, Any]) -> list[Tile]:
    """One slice of a case per draw from [0, 1), without duplicates, from feet to head."""
    try:
        images, labels = pack_case(case, settings)
    except DataError:
        return []  # the check reports it
    rows = np.flatnonzero(labels.any((1, 2))) if labels.any() else np.arange(len(labels))
    picked = np.unique(rows[(draws * len(rows)).astype(int)])
    place = f", slice {{}} of {len(labels)}" if len(labels) > 1 else ""
    return [Tile(f"{split}/{case.name}{place.format(i + 1)}", images[i], labels[i]) for i in picked]
