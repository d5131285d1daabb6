"""Results that the paper reports, in per cent.

Source: Tables 2 to 4 of "CARE: A Large Scale CT Image Dataset and Clinical Applicable Benchmark
Model for Rectal Cancer Segmentation". Dice and IoU are pooled over the slices of the test sets.
"""

from typing import Any, NamedTuple

from usam_jax.data.class_names import MEAN


class Row(NamedTuple):
    """One row of a table: Dice and, if reported, IoU of each foreground class, then the mean.

    The classes are in the order of their data set. All values are as printed: the mean of U-SAM-B
    on WORD is 84.83 there, while its printed classes average 84.77. `network` and `prompts` (a
    prompt mode) say which of our rows the row belongs to.
    """

    name: str
    network: str
    prompts: str
    dice: tuple[float, ...]
    iou: tuple[float, ...] = ()


CARE = (
    Row("S, SAM-B, no prompt", "sam_s", "none", (60.95, 71.00, 65.98), (43.83, 55.04, 49.44)),
    Row("U-SAM-B, no prompt", "usam", "none", (65.72, 72.84, 69.28), (48.94, 57.28, 53.11)),
    Row(
        "U-SAM-B, 1 point per class",
        "usam",
        "points1",
        (67.65, 73.94, 70.79),
        (51.11, 58.65, 54.88),
    ),
    Row(
        "U-SAM-B/P, 3 points per class",
        "usam",
        "points3",
        (70.27, 76.49, 73.38),
        (54.17, 61.94, 58.05),
    ),
    Row(
        "U-SAM-B, 5 points per class",
        "usam",
        "points5",
        (70.76, 75.62, 73.19),
        (54.75, 60.79, 57.77),
    ),
)
# fmt: off
WORD = (
    Row("SAM-B, no prompt", "sam_s", "none", (
        94.50, 91.67, 89.44, 88.91, 87.77, 59.83, 61.90, 70.15, 51.53, 71.91, 75.83, 51.71, 72.77,
        91.91, 88.24, 88.34, 77.28)),
    Row("U-SAM-B, no prompt", "usam", "none", (
        95.47, 94.94, 95.33, 95.46, 91.66, 76.91, 77.91, 75.58, 65.60, 83.38, 83.27, 69.39, 80.66,
        94.20, 88.23, 88.31, 84.83)),
    Row("U-SAM-B/P, 3 points per class", "usam", "points3", (
        96.04, 94.85, 92.57, 92.68, 91.96, 75.15, 81.51, 79.18, 65.54, 82.73, 83.99, 73.15, 82.94,
        95.03, 89.81, 89.86, 85.44)),
)
# fmt: on
# The other networks of Table 2 and Table 3, in their order.
CARE_OTHERS = (
    Row("Swin-Unet", "swin_unet", "none", (57.62, 70.73, 64.17), (40.46, 54.72, 47.59)),
    Row("V-Net", "vnet", "none", (63.47, 72.03, 67.75), (46.49, 56.28, 51.39)),
    Row("TransUNet", "transunet", "none", (60.21, 70.69, 65.45), (43.08, 54.67, 48.87)),
    Row("UCTransNet", "uctransnet", "none", (63.53, 70.67, 67.10), (46.55, 54.64, 50.59)),
    Row("Attention U-Net", "attention_unet", "none", (63.05, 71.39, 67.22), (46.04, 55.50, 50.77)),
    Row("ResUNet++", "resunet_pp", "none", (58.08, 69.87, 63.97), (40.93, 53.69, 47.31)),
    Row("MultiResUNet", "multires_unet", "none", (62.25, 72.11, 67.18), (45.19, 56.39, 50.79)),
    Row("MISSFormer", "missformer", "none", (53.63, 68.58, 61.11), (36.64, 52.19, 44.41)),
    Row("SAMed-H", "samed", "none", (60.05, 70.72, 65.38), (42.91, 54.70, 48.80)),
)
# fmt: off
WORD_OTHERS = (
    Row("Swin-Unet", "swin_unet", "none", (
        94.62, 92.72, 89.32, 89.31, 88.85, 70.92, 66.36, 70.11, 53.20, 78.64, 78.46, 55.13,
        76.32, 92.34, 86.80, 86.57, 79.35)),
    Row("V-Net", "vnet", "none", (
        95.90, 94.90, 94.41, 94.55, 91.48, 72.80, 76.98, 78.92, 61.63, 82.06, 83.30, 67.65,
        78.54, 94.51, 88.46, 88.72, 84.05)),
    Row("TransUNet", "transunet", "none", (
        95.46, 93.21, 91.47, 91.63, 90.01, 70.99, 70.61, 75.38, 55.47, 78.73, 81.25, 64.74,
        76.66, 93.76, 87.12, 87.56, 81.50)),
    Row("UCTransNet", "uctransnet", "none", (
        95.19, 94.18, 94.27, 94.62, 89.04, 65.83, 68.67, 73.30, 58.44, 79.60, 80.59, 64.36,
        75.43, 92.23, 89.31, 89.79, 81.55)),
    Row("Focal-UNet", "focal_unet", "none", (
        93.21, 89.54, 88.64, 88.68, 83.43, 61.29, 57.83, 60.57, 45.20, 70.72, 72.47, 48.03,
        70.08, 90.47, 84.63, 83.77, 74.28)),
    Row("R2U-Net", "r2unet", "none", (
        84.73, 90.35, 90.56, 87.78, 80.21, 59.56, 71.12, 72.64, 49.74, 70.77, 73.30, 48.26,
        72.99, 88.20, 74.17, 47.78, 72.63)),
    Row("ResUNet++", "resunet_pp", "none", (
        95.08, 93.71, 93.92, 94.22, 89.28, 69.28, 72.95, 75.82, 57.15, 79.80, 80.73, 65.59,
        75.27, 93.20, 92.26, 92.01, 82.52)),
    Row("MultiResUNet", "multires_unet", "none", (
        95.19, 93.73, 93.12, 93.33, 90.73, 69.83, 73.11, 75.33, 60.36, 81.32, 82.51, 64.51,
        78.35, 93.57, 85.25, 87.94, 82.30)),
    Row("MISSFormer", "missformer", "none", (
        85.65, 94.60, 91.00, 91.30, 90.22, 71.62, 72.27, 76.02, 57.85, 80.44, 80.87, 64.02,
        76.55, 93.53, 87.26, 86.90, 81.89)),
    Row("SAMed-H", "samed", "none", (
        95.55, 94.77, 93.04, 93.13, 90.94, 73.29, 70.56, 73.73, 59.15, 80.71, 81.09, 69.99,
        78.62, 93.99, 87.74, 88.04, 82.27)),
)
# fmt: on
TABLES = {"care": CARE, "word": WORD, "word_npy": WORD}
OTHERS = {"care": CARE_OTHERS, "word": WORD_OTHERS, "word_npy": WORD_OTHERS}


def rows_for(kind: str, classes: tuple[str, ...], split: str) -> list[dict[str, Any]]:
    """The paper's rows for a data set, with our class names.

    Empty if it has none or on other splits.

    The paper reports results on the test sets only. The rows are those of U-SAM and its baseline.
    """
    return [describe(x, classes) for x in fitting(TABLES.get(kind, ()), classes, split)]


def rows_by_network(
    kind: str, classes: tuple[str, ...], split: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The paper's rows of all networks, as those of `rows_for`, by network and prompt mode."""
    rows = (*OTHERS.get(kind, ()), *TABLES.get(kind, ()))
    found = fitting(rows, classes, split)
    return {(x.network, x.prompts): describe(x, classes) for x in found}


def compared_networks(kind: str) -> list[tuple[str, str]]:
    """Network and prompt mode of each row of the paper's table of a data set, in its order.

    Those of Table 2, then those that only Table 3 has, for a data set that the paper does not use.
    """
    own = [*OTHERS[kind], *WORD] if kind in OTHERS else [*CARE_OTHERS, *WORD_OTHERS, *WORD]
    return list(dict.fromkeys((x.network, x.prompts) for x in own))


def fitting(rows: tuple[Row, ...], classes: tuple[str, ...], split: str) -> list[Row]:
    """The rows with as many classes as the data set has, none on other splits than the test set."""
    return [x for x in rows if split == "test" and len(x.dice) == len(classes)]


def describe(row: Row, classes: tuple[str, ...]) -> dict[str, Any]:
    """Name, Dice and IoU of a row, with our class names."""
    names = (*classes[1:], MEAN)
    return {"name": row.name, "dice": by_class(row.dice, names), "iou": by_class(row.iou, names)}


def by_class(values: tuple[float, ...], names: tuple[str, ...]) -> dict[str, float]:
    return dict(zip(names, values, strict=True)) if values else {}
