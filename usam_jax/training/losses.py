"""The training loss: 0.4 cross entropy + 0.6 Dice, in float32."""

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
