"""Pooled Dice and IoU: pixel counts are summed over all slices first, then divided once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from usam_jax.data.class_names import MEAN, metric_key


def count_pixels(
    predicted: Int[Array, "b h w"],
    labels: Int[Array, "b h w"],
    valid: Bool[Array, " b"],
    num_classes: int,
) -> Int[Array, "b k 3"]:
    """True positives, false positives and false negatives of each class in each slice, int32.

    The counts of a slice that is not valid (padding) are zero.
    """
    p = jax.nn.one_hot(predicted, num_classes, dtype=jnp.bool_)
    y = jax.nn.one_hot(labels, num_classes, dtype=jnp.bool_)
    counts = jnp.stack([p & y, p & ~y, ~p & y], axis=-1).sum((1, 2), dtype=jnp.int32)
    return jnp.where(valid[:, None, None], counts, 0)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Pooled metrics by name of the foreground class.

    None if truth and prediction both lack it.

    The means are over the foreground classes with a value.
    """

    dice: dict[str, float | None]
    iou: dict[str, float | None]
    pixels: dict[str, dict[str, int]]

    @property
    def mean_dice(self) -> float | None:
        return mean_of(self.dice)

    @property
    def mean_iou(self) -> float | None:
        return mean_of(self.iou)

    def named(self, split: str) -> dict[str, float | None]:
        """Dice and IoU under the names of metrics.jsonl: `val/dice/normal_rectum`, `val/iou/mean`."""
        dice = {**self.dice, MEAN: self.mean_dice}
        iou = {**self.iou, MEAN: self.mean_iou}
        return {
            f"{split}/{kind}/{metric_key(name)}": value
            for kind, values in (("dice", dice), ("iou", iou))
            for name, value in values.items()
        }


def mean_of(values: dict[str, float | None]) -> float | None:
    defined = [value for value in values.values() if value is not None]
    return sum(defined) / len(defined) if defined else None


def sum_by_case(counts: np.ndarray, names: list[str]) -> dict[str, dict[str, list[int]]]:
    """Counts of each case by class number: true positives, false positives, false negatives.

    `counts` are int[n k 3] of n slices, `names` the case of each slice.
    """
    sums: dict[str, np.ndarray] = {}
    for name, of_slice in zip(names, counts.astype(np.int64), strict=True):
        sums[name] = sums.get(name, 0) + of_slice
    return {
        name: {str(i): row.tolist() for i, row in enumerate(total) if i}
        for name, total in sums.items()
    }


def pooled_scores(counts: np.ndarray, classes: tuple[str, ...]) -> Scores:
    """Scores from sums over all slices, as in the paper.

    `counts` are int[n k 3] of `count_pixels`.
    """
    dice, iou, pixels = {}, {}, {}
    for name, row in list(zip(classes, counts.sum(0, dtype=np.int64), strict=True))[1:]:
        tp, fp, fn = (int(x) for x in row)
        pixels[name] = {"true_positive": tp, "false_positive": fp, "false_negative": fn}
        present = tp + fp + fn > 0
        dice[name] = 2 * tp / (2 * tp + fp + fn) if present else None
        iou[name] = tp / (tp + fp + fn) if present else None
    return Scores(dice, iou, pixels)
