"""Colours and outlines of classes, shared by the contact sheet and the report."""

from typing import Any

import numpy as np
from matplotlib import colormaps

TWO_CLASSES = ("#00b4ff", "#ff5a36")  # distinguishable with any colour vision


def class_colours(num_classes: int) -> list[Any]:
    """A colour for each class but the background."""
    if num_classes <= 3:
        return list(TWO_CLASSES[: num_classes - 1])
    return [colormaps["tab20"](i % 20) for i in range(num_classes - 1)]


def outline(axes: Any, label: np.ndarray, colours: list[Any]) -> None:
    """Draws the outline of each class of a label map uint8[h w]."""
    for value, colour in enumerate(colours, start=1):
        if (label == value).any():
            axes.contour(label == value, levels=[0.5], colors=[colour], linewidths=1.2)
