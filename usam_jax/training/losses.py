"""The training loss: 0.4 cross entropy + 0.6 Dice, in float32."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

CE_WEIGHT, DICE_WEIGHT = 0.4, 0.6
SMOOTH = 1e-5


def dice_loss(logits: Float[Array, "b h w k"], y: Float[Array, "b h w k"]) -> Float[Array, ""]:
    """Mean over all classes, background included, of 1 - Dice summed over the whole batch.

    `y` are the labels as one-hot vectors.
    """
    p = jax.nn.softmax(logits)
    pixels = (0, 1, 2)
    overlap = 2 * (p * y).sum(pixels) + SMOOTH
    total = jnp.square(p).sum(pixels) + y.sum(pixels) + SMOOTH  # y squared is y
    return (1 - overlap / total).mean()


def segmentation_loss(
    logits: Float[Array, "b h w k"], labels: Int[Array, "b h w"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss and its parts `ce` (mean over pixels) and `dice`. Source: the published code."""
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
    """The weighted sum of the losses of a network's outputs, and the parts `ce` and `dice` of "logits".

    For an output of another size the labels are resized to it by the nearest pixel. Raises
    ValueError if outputs and weights do not have the same names.
    """
    if set(outputs) != set(weights):
        raise ValueError(
            f"the network returned and sowed {sorted(outputs)}, but SPEC.loss_weights has "
            f"{sorted(weights)}"
        )
    losses = {name: segmentation_loss(x, resize_labels(labels, x)) for name, x in outputs.items()}
    total = sum(weights[name] * loss for name, (loss, _) in losses.items())
    return jnp.asarray(total), losses["logits"][1]


def resize_labels(
    labels: Int[Array, "b h w"], logits: Float[Array, "b i j k"]
) -> Int[Array, "b i j"]:
    """Labels at the size of `logits`, by the nearest pixel (half-pixel centres)."""
    shape = logits.shape[:-1]
    return labels if labels.shape == shape else jax.image.resize(labels, shape, "nearest")
