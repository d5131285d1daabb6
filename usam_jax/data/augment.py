"""The published augmentation: right angles and flips, or a small rotation (NumPy, OpenCV)."""

import cv2
import numpy as np

from usam_jax.data.pack_case import make_clahe

RIGHT_ANGLE_SHARE = 0.5
ROTATION_SHARE = 0.25
MAX_DEGREES = 20.0
RANDOM_CLAHE_LIMITS = (1.0, 4.0)

Pair = tuple[np.ndarray, np.ndarray]


def augment(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
    """A random view of a slice: half are turned by right angles and flipped, a quarter rotated.

    uint8[h w] both. Source: the paper's implementation details; the published code.
    """
    draw = rng.random()
    if draw < RIGHT_ANGLE_SHARE:
        turns, axis = int(rng.integers(4)), int(rng.integers(2))
        return flip_turned(image, turns, axis), flip_turned(label, turns, axis)
    if draw < RIGHT_ANGLE_SHARE + ROTATION_SHARE:
        degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
        return rotate(image, degrees), rotate(label, degrees)
    return image, label


def flip_turned(x: np.ndarray, turns: int, axis: int) -> np.ndarray:
    return np.ascontiguousarray(np.flip(np.rot90(x, turns), axis))


def rotate(x: np.ndarray, degrees: float) -> np.ndarray:
    """Rotation about the centre, nearest neighbour, 0 (air, background) from outside."""
    h, w = x.shape
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(x, matrix, (w, h), flags=cv2.INTER_NEAREST)


def random_clahe(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """CLAHE with a clip limit drawn anew, as the published loader does for each access."""
    limit = rng.uniform(*RANDOM_CLAHE_LIMITS)
    return make_clahe(limit).apply(image)
