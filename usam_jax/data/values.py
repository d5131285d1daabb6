"""Grey values of a case, and whether they can be those of a CT after its window."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from usam_jax.utils.errors import list_some

MAX_CLIPPED = 0.2  # share of a case's pixels; 0.02 to 0.04 in slices of CARE
MAX_BLACK = 0.95  # 0.3 in slices of CARE, 0.7 in CTs with much air around the patient
MIN_LEVELS = 32  # of 256
FIX = (
    "save CTs in HU and slices of CARE in [0, 1] (0: air), or correct config.data.window_level and "
    "window_width, and look at the contact sheet"
)


@dataclasses.dataclass(frozen=True)
class GreyValues:
    """What packing leaves of a case's grey values, which are nominally in [0, 1].

    `low` and `high` are the extremes, `clipped` the share of pixels below 0 or from 1 on, `black`
    the share of pixels up to 0, and `levels` the number of grey levels left, of 256.
    """

    low: float
    high: float
    clipped: float
    black: float
    levels: int


def measure(grey: np.ndarray) -> GreyValues:
    """Measure the grey values float[n h w] of a case before they are packed."""
    found = np.zeros(256, bool)
    clipped = black = 0
    for image in grey:
        found[(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)] = True
        # Values that are rounded to 0 anyway lose nothing.
        clipped += int(np.count_nonzero((image <= -1 / 255) | (image >= 1)))
        black += int(np.count_nonzero(image <= 0))
    low, high = float(grey.min()), float(grey.max())
    return GreyValues(low, high, clipped / grey.size, black / grey.size, int(found.sum()))


def is_unusable(values: GreyValues) -> bool:
    """Whether packing leaves too little of the values to train with."""
    return values.clipped > MAX_CLIPPED or values.black > MAX_BLACK or values.levels < MIN_LEVELS


def doubt(values: GreyValues, is_volume: bool) -> str:
    """What is doubtful about the values of a case, "" if nothing is.

    Every CT volume shows some air. The grey values of CARE exceed 1 a little.
    """
    if not is_unusable(values) and values.high <= 2 and (not is_volume or values.low <= 0):
        return ""
    return (
        f"grey values from {values.low:.3g} to {values.high:.3g} after the window, expected 0 "
        f"(air) to about 1: is this CT in HU? {values.clipped:.0%} of the pixels are clipped, "
        f"{values.black:.0%} are black, and {values.levels} of 256 grey levels are left"
    )


def unusable_splits(values: Mapping[str, list[GreyValues]]) -> list[str]:
    """The splits in which more than half of the cases have unusable values."""
    return [
        split for split, found in values.items() if 2 * sum(map(is_unusable, found)) > len(found)
    ]


def describe_doubts(doubts: Mapping[str, str]) -> str:
    """Doubts by case as text with one line for each, and what to do."""
    lines = list_some([f"{name}: {text}" for name, text in doubts.items()])
    return f"the grey values of {len(doubts)} cases look wrong:\n{lines}\n  what to do: {FIX}"
