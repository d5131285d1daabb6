"""Points and boxes that a promptable network takes, and the arrays of a batch as its inputs."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

FOREGROUND, BACKGROUND, PADDING = 1, 0, -1


@struct.dataclass
class Prompts:
    """What the user points at, in pixels (x, y) of the model's input; either part may be None.

    A point's label is 1 (foreground), 0 (background) or -1 (padding, which is no point).
    A box is (x0, y0, x1, y1). `given` tells for each image which of its points and, last, whether
    its box are there (q = p + 1), so that arrays of one shape hold any prompts: an image gets the
    logits that it gets from arrays that hold nothing else.
    """

    points_xy: Float[Array, "b p 2"] | None = None
    point_labels: Int[Array, "b p"] | None = None
    boxes_xyxy: Float[Array, "b 4"] | None = None
    given: Bool[Array, "b q"] | None = None  # needs both parts; None: what is not None is there

    def token_mask(self) -> Bool[Array, "b n"] | None:
        """Which of the encoder's tokens are there; None where all are."""
        if self.given is None:
            return None
        if self.points_xy is None or self.boxes_xyxy is None:
            raise ValueError("prompts.given was set without both points_xy and boxes_xyxy")
        points, box = self.given[:, :-1], self.given[:, -1:]
        end = points.any(1, keepdims=True) & ~box
        return jnp.concatenate([points, end, box, box], axis=1)


def batch_images(images: Array) -> Array:
    """uint8 slices to the model's grey values in [0, 1]."""
    return images.astype(jnp.float32) / 255


def batch_prompts(batch: dict[str, Any]) -> Prompts | None:
    """The prompts of a batch; None where it has none."""
    fields = ("points_xy", "point_labels", "boxes_xyxy", "prompts_given")
    found = {name.removeprefix("prompts_"): batch[name] for name in fields if name in batch}
    return Prompts(**found) if found else None
