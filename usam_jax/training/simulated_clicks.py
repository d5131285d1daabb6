"""A simulated user inside the training step: each click lies where the prediction is wrong.

Source: Kirillov et al., "Segment Anything", 2023, appendix A; Sofiiuk et al., "Reviving Iterative
Training with Mask Guidance", 2021.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from usam_jax.models.common.prompts import BACKGROUND, FOREGROUND, PADDING, Prompts

WINDOW = 9  # pixels: side of the window in which errors are counted
POWER = 4  # of that count: larger values draw clicks closer to the centres of error regions
WEIGHT = 0.5  # of the loss at the clicked pixels, which are few among all pixels


def with_room(prompts: Prompts, rounds: int) -> Prompts:
    """Append `rounds` padding points, to be filled by `add_click` one by one.

    `prompts` has points, their classes, boxes and `given`.
    """

    def pad(x: Array, value: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, rounds)) + ((0, 0),) * (x.ndim - 2), constant_values=value)

    given = prompts.given
    assert prompts.points_xy is not None and prompts.point_labels is not None
    assert prompts.point_classes is not None and given is not None
    return dataclasses.replace(
        prompts,
        points_xy=pad(prompts.points_xy, 0),
        point_labels=pad(prompts.point_labels, PADDING),
        point_classes=pad(prompts.point_classes, 0),
        given=jnp.concatenate([pad(given[:, :-1], 0), given[:, -1:]], axis=1),
    )


def error_density(wrong: Bool[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Return the share of wrong pixels in the window around each pixel."""
    _, h, w = wrong.shape
    # Two matmuls with band matrices: XLA:CPU recomputes the logits in each window of reduce_window.
    rows, columns = (
        (jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n)) <= WINDOW // 2).astype(jnp.float32)
        for n in (h, w)
    )
    return rows @ wrong.astype(jnp.float32) @ columns / WINDOW**2


def draw_clicks(
    wrong: Bool[Array, "b h w"], key: Array
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Draw the index of a wrong pixel of each image, and return whether there is one.

    Pixels inside large error regions are drawn more often than those at their borders.
    """
    density = error_density(wrong)
    logits = jnp.where(wrong, POWER * jnp.log(density + 1e-6), -jnp.inf)
    b = len(wrong)
    any_wrong = wrong.any((1, 2))
    # Without a wrong pixel, every logit is -inf and the index is of no use.
    drawn = jax.random.categorical(key, logits.reshape(b, -1))
    return jnp.where(any_wrong, drawn, 0), any_wrong


def add_click(
    prompts: Prompts,
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b h w"],
    slot: int,
    key: Array,
) -> Prompts:
    """Return `prompts` with a click in `slot` of each image, and `logits` as the prediction.

    The click carries the class of `labels`. An image without a wrong pixel gets none. No gradient
    flows through the result.
    """
    logits = jax.lax.stop_gradient(logits)
    b, _, w, _ = logits.shape
    chosen, clicked = draw_clicks(logits.argmax(-1) != labels, key)
    xy = jnp.stack([chosen % w, chosen // w], axis=-1).astype(jnp.float32)
    classes = jnp.take_along_axis(labels.reshape(b, -1), chosen[:, None], axis=1)[:, 0]
    kinds = jnp.where(classes > 0, FOREGROUND, BACKGROUND)
    assert prompts.points_xy is not None and prompts.point_labels is not None
    assert prompts.point_classes is not None and prompts.given is not None
    return dataclasses.replace(
        prompts,
        points_xy=prompts.points_xy.at[:, slot].set(xy),
        point_labels=prompts.point_labels.at[:, slot].set(jnp.where(clicked, kinds, PADDING)),
        point_classes=prompts.point_classes.at[:, slot].set(classes),
        given=prompts.given.at[:, slot].set(clicked),
        previous=jax.nn.softmax(logits),
    )


def choose(which: Bool[Array, " b"], a: Prompts, b: Prompts) -> Prompts:
    """Return the prompts of `a` for the images of `which`, and those of `b` for the others."""
    return jax.tree.map(lambda x, y: jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y), a, b)


def click_loss(logits: Float[Array, "b h w k"], prompts: Prompts) -> Float[Array, ""]:
    """Return the cross-entropy at the pixels of the clicks, as a mean over the clicks.

    It is 0 without clicks.
    """
    assert prompts.points_xy is not None and prompts.point_classes is not None
    assert prompts.given is not None
    x, y = jnp.moveaxis(jnp.rint(prompts.points_xy).astype(jnp.int32), -1, 0)
    at_clicks = jax.vmap(lambda image, y, x: image[y, x])(logits, y, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(at_clicks, prompts.point_classes)
    given = prompts.given[:, :-1] & (prompts.point_labels != PADDING)
    return (loss * given).sum() / jnp.maximum(given.sum(), 1)
