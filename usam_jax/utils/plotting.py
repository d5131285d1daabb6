"""Shared parts of all plots: saving, colours of classes and series, outlines of labels."""

import pathlib
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text

from usam_jax.utils.files import atomic_write

DPI = 110
# Both pairs are distinguishable with any common colour-vision deficiency.
TWO_CLASSES = ("#00b4ff", "#ff5a36")  # on grey images
TWO_SERIES = ("#0072b2", "#e69f00")  # on white


def class_colours(num_classes: int) -> list[Any]:
    """A colour for each foreground class.

    `num_classes` counts the background.
    """
    if num_classes <= 3:
        return list(TWO_CLASSES[: num_classes - 1])
    return [colormaps["tab20"](i % 20) for i in range(num_classes - 1)]


def outline(axes: Any, label: np.ndarray, colours: list[Any]) -> None:
    """Draw the contour of each class 1, 2, ... in `label`, uint8[h w], in its colour."""
    for value, colour in enumerate(colours, start=1):
        if (label == value).any():
            axes.contour(label == value, levels=[0.5], colors=[colour], linewidths=1.2)


def drawable(text: str) -> str:
    """The text with a replacement character for each byte of a file name that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def save_figure(figure: Figure, path: pathlib.Path, dpi: int = DPI) -> None:
    """Save a figure atomically.

    The format follows the ending of `path`.
    """
    for text in figure.findobj(Text):
        if given := text.get_text():
            text.set_parse_math(False)  # names of files may contain $
            text.set_text(drawable(given))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
