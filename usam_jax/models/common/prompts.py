"""Points and boxes that a promptable network takes, and the arrays of a batch as its inputs."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

FOREGROUND, BACKGROUND, PADDING = 1, 0, -1


@struct.dataclass
class Prompts:
    """Points and boxes in pixels (x, y) of the model's input, either of which may be None.

    A point's label is 1 (foreground), 0 (background) or -1 (padding, which is not a point). A box
    is (x0, y0, x1, y1). `given` says for each image which of its points count and, last, whether
    its box does (q = p + 1), so arrays of one shape hold any prompts. The logits of an image are
    then the same as with arrays that hold only the prompts that count.

    Interactive networks alone take the last two fields: the class of each point (0: background),
    and the class probabilities of a previous prediction, all zero for an image without one.
    """

    points_xy: Float[Array, "b p 2"] | None = None
    point_labels: Int[Array, "b p"] | None = None
    boxes_xyxy: Float[Array, "b 4"] | None = None
    given: Bool[Array, "b q"] | None = None  # needs points and boxes; None: all count
    point_classes: Int[Array, "b p"] | None = None
    previous: Float[Array, "b h w k"] | None = None

    def token_mask(self) -> Bool[Array, "b n"] | None:
        """Which of the encoder's tokens count, or None if all do.

        Raises ValueError if `given` is set without points or without boxes.
        """
        if self.given is None:
            return None
        if self.points_xy is None or self.boxes_xyxy is None:
            raise ValueError("prompts.given: got it without points_xy or boxes_xyxy, expected both")
        points, box = self.given[:, :-1], self.given[:, -1:]
        end = points.any(1, keepdims=True) & ~box
        return jnp.concatenate([points, end, box, box], axis=1)


def batch_images(images: Array) -> Array:
    """Convert slices or windows uint8[b ...] to grey values float32[b ...] in [0, 1]."""
    return images.astype(jnp.float32) / 255


def batch_prompts(batch: dict[str, Any]) -> Prompts | None:
    """Prompts of a batch, or None if the batch has none."""
    fields = (
        "points_xy",
        "point_labels",
        "boxes_xyxy",
        "prompts_given",
        "point_classes",
        "previous",
    )
    found = {name.removeprefix("prompts_"): batch[name] for name in fields if name in batch}
    return Prompts(**found) if found else None
