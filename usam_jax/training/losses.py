"""The training loss: 0.4 cross entropy + 0.6 Dice, in float32."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from usam_jax.utils.errors import UsageError

CE_WEIGHT, DICE_WEIGHT = 0.4, 0.6
SMOOTH = 1e-5


def dice_loss(logits: Float[Array, "b h w k"], y: Float[Array, "b h w k"]) -> Float[Array, ""]:
    """Return the mean over all classes, background included, of 1 - Dice over the whole batch.

    `y` is the one-hot encoding of the labels.
    """
    p = jax.nn.softmax(logits)
    pixels = (0, 1, 2)
    overlap = 2 * (p * y).sum(pixels) + SMOOTH
    total = jnp.square(p).sum(pixels) + y.sum(pixels) + SMOOTH  # y**2 = y
    return (1 - overlap / total).mean()


def segmentation_loss(
    logits: Float[Array, "b h w k"], labels: Int[Array, "b h w"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return `0.4 * ce + 0.6 * dice` and both terms, `ce` as the mean over pixels, in float32.

    Source: the published code.
    """
    logits = logits.astype(jnp.float32)
    y = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    ce = optax.softmax_cross_entropy(logits, y).mean()
    dice = dice_loss(logits, y)
    return CE_WEIGHT * ce + DICE_WEIGHT * dice, {"ce": ce, "dice": dice}


def weighted_loss(
    outputs: Mapping[str, Float[Array, "b _ _ k"]],
    labels: Int[Array, "b h w"],
    weights: Mapping[str, float],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the weighted sum of the losses of all outputs, and `ce` and `dice` of "logits".

    Labels are resized to the size of each output by nearest neighbour. Raises UsageError if
    `outputs` and `weights` do not have the same keys.
    """
    if set(outputs) != set(weights):
        raise UsageError(
            f"SPEC.loss_weights: got {sorted(weights)}, expected the outputs that the network "
            f"returns and sows, {sorted(outputs)}"
        )
    losses = {name: segmentation_loss(x, resize_labels(labels, x)) for name, x in outputs.items()}
    total = sum(weights[name] * loss for name, (loss, _) in losses.items())
    return jnp.asarray(total), losses["logits"][1]


def resize_labels(
    labels: Int[Array, "b h w"], logits: Float[Array, "b i j k"]
) -> Int[Array, "b i j"]:
    """Resize labels to the size of `logits` by nearest neighbour with half-pixel centres."""
    shape = logits.shape[:-1]
    return labels if labels.shape == shape else jax.image.resize(labels, shape, "nearest")
