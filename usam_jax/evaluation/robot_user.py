"""A robot user: the next click lies in the middle of the largest error region.

As in Sofiiuk et al., "Reviving Iterative Training with Mask Guidance", 2021, but for any number of
classes, and with earlier clicks as borders, so that a second click on a region lies away from the
first. There the region is the deepest one, here the largest.
"""

import dataclasses
from collections.abc import Iterable

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Click:
    """A click and the error region that it is to correct.

    `xy` is in pixels, `label` the true class there, `before` the class predicted there, and
    `region` bool[h w].
    """

    xy: tuple[int, int]
    label: int
    before: int
    region: np.ndarray


def next_click(
    predicted: np.ndarray, label: np.ndarray, earlier: Iterable[tuple[int, int]] = ()
) -> Click | None:
    """Return the next click on a slice, or None if there is no error that is left to click on.

    `predicted` and `label` are uint8[h w]. An error region is a connected set of wrong pixels with
    the same true class. The click lies at its pixel that is farthest from its border and from the
    pixels (x, y) of `earlier` clicks, which are not clicked again.
    """
    wrong = predicted != label
    is_free = np.ones_like(wrong)
    for x, y in earlier:
        is_free[y, x] = False
    largest, region = 0, None
    for c in np.unique(label[wrong & is_free]).tolist():
        mask = (wrong & (label == c)).astype(np.uint8)
        count, parts = cv2.connectedComponents(mask, connectivity=8)
        areas = np.bincount(parts.ravel(), minlength=count)
        areas[0] = 0  # the rest of the slice
        areas[np.bincount(parts[is_free], minlength=count) == 0] = 0
        if areas.max() > largest:
            largest, region = int(areas.max()), parts == int(areas.argmax())
    if region is None:
        return None
    # The frame around the slice counts as border.
    framed = np.pad((region & is_free).astype(np.uint8), 1)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = (int(i) for i in np.unravel_index(depth.argmax(), depth.shape))
    return Click((x, y), int(label[y, x]), int(predicted[y, x]), region)


def obeys(click: Click, predicted: np.ndarray) -> bool:
    """Return whether the clicked pixel has the click's class, or for background, lost its class."""
    x, y = click.xy
    now = int(predicted[y, x])
    return now == click.label if click.label else now != click.before


def cleared(click: Click, predicted: np.ndarray) -> float:
    """Return the share of the click's error region that now has the click's class."""
    return float((predicted[click.region] == click.label).mean())
