"""Point and box prompts from a label map: drawn at random in training, fixed in evaluation."""

import numpy as np

FOREGROUND, PADDING = 1, -1


def make_points(
    label: np.ndarray, num_classes: int, per_class: int, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Points of each class in turn, all labelled as foreground: they say where, not which class.

    An absent class's place is taken by the points of the next present class. A class with fewer
    pixels gives as many points as it has; the rest, and a slice without any class, is padding.
    Drawn without `rng`, they are spread evenly over the class's pixels in reading order.

    Returns points_xy float32[(k-1)*per_class 2] (pixels) and labels int32[(k-1)*per_class].
    """
    pixels = np.flatnonzero(label)
    values = label.ravel()[pixels]
    chosen = {
        c: choose(pixels[values == c], per_class, rng)
        for c in range(1, num_classes)
        if (values == c).any()
    }
    points = np.zeros((num_classes - 1, per_class, 2), np.float32)
    labels = np.full((num_classes - 1, per_class), PADDING, np.int32)
    present = sorted(chosen)
    for c in range(1, num_classes) if present else ():
        flat = chosen[next((p for p in present if p >= c), present[0])]
        rows, columns = np.divmod(flat, label.shape[1])
        points[c - 1, : flat.size] = np.stack([columns, rows], axis=-1)
        labels[c - 1, : flat.size] = FOREGROUND
    return points.reshape(-1, 2), labels.reshape(-1)


def choose(pixels: np.ndarray, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """At most `count` different ones of `pixels`."""
    count = min(count, pixels.size)
    if rng is None:
        return pixels[((np.arange(count) + 0.5) * pixels.size / count).astype(np.int64)]
    return rng.choice(pixels, count, replace=False, shuffle=False)


def make_box(label: np.ndarray) -> np.ndarray:
    """The box (x0, y0, x1, y1) float32[4] of all foreground, its outermost pixels included.

    A slice without foreground gets the whole image, for SAM has no padding for boxes.
    """
    rows, columns = np.flatnonzero(label.any(1)), np.flatnonzero(label.any(0))
    if not rows.size:
        return np.array([0, 0, label.shape[1] - 1, label.shape[0] - 1], np.float32)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
