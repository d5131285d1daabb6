"""Results that the paper reports, in per cent.

Source: Tables 2 to 4 of "CARE: A Large Scale CT Image Dataset and Clinical Applicable Benchmark
Model for Rectal Cancer Segmentation". Dice and IoU are pooled over the slices of the test sets.
"""

from typing import Any, NamedTuple

from usam_jax.data.class_names import MEAN


class Row(NamedTuple):
    """One row of a table: Dice and, if reported, IoU of each foreground class, then the mean.

    The classes are in the order of their data set. All values are as printed: the mean of U-SAM-B
    on WORD is 84.83 there, while its printed classes average 84.77.
    """

    name: str
    dice: tuple[float, ...]
    iou: tuple[float, ...] = ()


CARE = (
    Row("S, SAM-B, no prompt", (60.95, 71.00, 65.98), (43.83, 55.04, 49.44)),
    Row("U-SAM-B, no prompt", (65.72, 72.84, 69.28), (48.94, 57.28, 53.11)),
    Row("U-SAM-B, 1 point per class", (67.65, 73.94, 70.79), (51.11, 58.65, 54.88)),
    Row("U-SAM-B/P, 3 points per class", (70.27, 76.49, 73.38), (54.17, 61.94, 58.05)),
    Row("U-SAM-B, 5 points per class", (70.76, 75.62, 73.19), (54.75, 60.79, 57.77)),
)
# fmt: off
WORD = (
    Row("SAM-B, no prompt", (
        94.50, 91.67, 89.44, 88.91, 87.77, 59.83, 61.90, 70.15, 51.53, 71.91, 75.83, 51.71, 72.77,
        91.91, 88.24, 88.34, 77.28)),
    Row("U-SAM-B, no prompt", (
        95.47, 94.94, 95.33, 95.46, 91.66, 76.91, 77.91, 75.58, 65.60, 83.38, 83.27, 69.39, 80.66,
        94.20, 88.23, 88.31, 84.83)),
    Row("U-SAM-B/P, 3 points per class", (
        96.04, 94.85, 92.57, 92.68, 91.96, 75.15, 81.51, 79.18, 65.54, 82.73, 83.99, 73.15, 82.94,
        95.03, 89.81, 89.86, 85.44)),
)
# fmt: on
TABLES = {"care": CARE, "word": WORD, "word_npy": WORD}


def rows_for(kind: str, classes: tuple[str, ...], split: str) -> list[dict[str, Any]]:
    """The paper's rows for a data set, with our class names.

    Empty if it has none or on other splits.

    The paper reports results on the test sets only.
    """
    return [
        {"name": row.name, "dice": by_class(row.dice, names), "iou": by_class(row.iou, names)}
        for names in [(*classes[1:], MEAN)]
        for row in (TABLES.get(kind, ()) if split == "test" else ())
        if len(row.dice) == len(names)
    ]


def by_class(values: tuple[float, ...], names: tuple[str, ...]) -> dict[str, float]:
    return dict(zip(names, values, strict=True)) if values else {}
