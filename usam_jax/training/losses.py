"""The training loss: 0.4 cross entropy + 0.6 Dice, or as `config.train` says, in float32."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from usam_jax.utils.errors import UsageError

CE_WEIGHT, DICE_WEIGHT = 0.4, 0.6
SMOOTH = 1e-5

Terms = dict[str, Float[Array, ""]]
LossFn = Callable[[Float[Array, "b ... k"], Int[Array, "b ..."]], tuple[Float[Array, ""], Terms]]


def dice_loss(p: Float[Array, "*n k"], y: Float[Array, "*n k"]) -> Float[Array, ""]:
    """Return the mean over all classes, background included, of 1 - Dice over the whole batch.

    `p` are probabilities and `y` is the one-hot encoding of the labels.
    """
    pixels = tuple(range(p.ndim - 1))
    overlap = 2 * (p * y).sum(pixels) + SMOOTH
    total = jnp.square(p).sum(pixels) + y.sum(pixels) + SMOOTH  # y**2 = y
    return (1 - overlap / total).mean()


def foreground_dice_loss(p: Float[Array, "*n k"], y: Float[Array, "*n k"]) -> Float[Array, ""]:
    """Return the mean over the foreground classes of 1 - Dice over the batch, without squares.

    Source: nnU-Net's batch Dice for 2-D, plus 1.
    """
    pixels, p, y = tuple(range(p.ndim - 1)), p[..., 1:], y[..., 1:]
    overlap = 2 * (p * y).sum(pixels) + SMOOTH
    return (1 - overlap / (p.sum(pixels) + y.sum(pixels) + SMOOTH)).mean()


DICE = {"squared": dice_loss, "foreground": foreground_dice_loss}


def segmentation_loss(
    logits: Float[Array, "*n k"],
    labels: Int[Array, "*n"],
    ce_weight: float = CE_WEIGHT,
    dice_weight: float = DICE_WEIGHT,
    dice: str = "squared",
    ignored: int | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Return `0.4 * ce + 0.6 * dice` and both terms, `ce` as the mean over pixels, in float32.

    `dice` is a key of DICE. Pixels whose label is `ignored` do not count. Source: the published code.
    """
    logits = logits.astype(jnp.float32)
    y = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)  # all 0 if ignored
    ce, p = optax.softmax_cross_entropy(logits, y), jax.nn.softmax(logits)
    if ignored is None:
        terms = {"ce": ce.mean(), "dice": DICE[dice](p, y)}
    else:
        counted = labels != ignored
        terms = {"ce": ce.sum() / counted.sum(), "dice": DICE[dice](p * counted[..., None], y)}
    return ce_weight * terms["ce"] + dice_weight * terms["dice"], terms


def make_loss(train: ConfigDict, ignored: int | None = None) -> LossFn:
    """Return `segmentation_loss` with the weights and the Dice of `config.train`.

    Pixels whose label is `ignored` do not count. Raises UsageError if they make no sense.
    """
    if train.dice not in DICE:
        raise UsageError(f"config.train.dice: got {train.dice!r}, expected {' or '.join(DICE)}")
    weights = {"ce_weight": train.ce_weight, "dice_weight": train.dice_weight}
    for field, weight in weights.items():
        if weight < 0 or not any(weights.values()):
            raise UsageError(
                f"config.train.{field}: got {weight}, expected 0 or more, and one weight above 0"
            )
    return functools.partial(segmentation_loss, **weights, dice=train.dice, ignored=ignored)


def weighted_loss(
    outputs: Mapping[str, Float[Array, "b ... k"]],
    labels: Int[Array, "*n"],
    weights: Mapping[str, float],
    loss_fn: LossFn = segmentation_loss,
    label_grid: str = "half_pixel",
) -> tuple[Float[Array, ""], Terms]:
    """Return the weighted sum of the losses of all outputs, and `ce` and `dice` of "logits".

    Labels are resized to the size of each output by nearest neighbour on `label_grid`. Raises UsageError if
    `outputs` and `weights` do not have the same keys.
    """
    if set(outputs) != set(weights):
        raise UsageError(
            f"SPEC.loss_weights: got {sorted(weights)}, expected the outputs that the network "
            f"returns and sows, {sorted(outputs)}"
        )
    losses = {name: loss_fn(x, resize_labels(labels, x, label_grid)) for name, x in outputs.items()}
    total = sum(weights[name] * loss for name, (loss, _) in losses.items() if weights[name])
    return jnp.asarray(total), losses["logits"][1]


def half_pixel_rows(n: int, m: int) -> np.ndarray:
    """Return the rows of n that m rows show: `floor((i + 0.5) n / m)`."""
    return (2 * np.arange(m) + 1) * n // (2 * m)


def end_point_rows(n: int, m: int) -> np.ndarray:
    """Return the rows of n that m rows show, with equal ends: `round(i (n - 1) / (m - 1))`."""
    return np.rint(np.arange(m) * (n - 1) / max(m - 1, 1)).astype(int)


GRIDS = {"half_pixel": half_pixel_rows, "end_points": end_point_rows}


def resize_labels(
    labels: Int[Array, "b ..."], logits: Float[Array, "b ... k"], grid: str = "half_pixel"
) -> Int[Array, "b ..."]:
    """Resize labels to the size of `logits` by nearest neighbour on a grid of GRIDS."""
    for axis in range(1, labels.ndim):
        if labels.shape[axis] != logits.shape[axis]:
            rows = GRIDS[grid](labels.shape[axis], logits.shape[axis])
            labels = labels.take(rows, axis=axis)
    return labels
