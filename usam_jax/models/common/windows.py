"""Square windows of a map and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def window_partition(x: Float[Array, "b h w d"], window: int) -> Float[Array, "n s s d"]:
    """Non-overlapping windows of a map that is zero-padded at the bottom and right to fit."""
    b, h, w, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, d)
    return x.swapaxes(2, 3).reshape(-1, window, window, d)


def window_unpartition(
    x: Float[Array, "n s s d"], shape: tuple[int, ...]
) -> Float[Array, "b h w d"]:
    """Inverse of `window_partition` for a map of `shape` (b, h, w, d)."""
    b, h, w, d = shape
    window = x.shape[1]
    rows, columns = -(-h // window), -(-w // window)
    x = x.reshape(b, rows, columns, window, window, d).swapaxes(2, 3)
    return x.reshape(b, rows * window, columns * window, d)[:, :h, :w]
