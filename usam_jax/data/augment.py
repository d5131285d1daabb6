"""Augmentation of a slice: the published one, and further ones as settings."""

import dataclasses
import math

import cv2
import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.packed.encode import make_clahe
from usam_jax.utils.errors import UsageError

RIGHT_ANGLE_SHARE = 0.5
ROTATION_SHARE = 0.25
MAX_DEGREES = 20.0
RANDOM_CLAHE_LIMITS = (1.0, 4.0)
KNOTS = 5  # knots of the elastic field along each side
MAX_ELASTIC = 0.05  # share of the slice's side; a field twice as strong would fold

Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentations of a slice, each of which can be off. Fields as in `config.data`."""

    published: bool = True
    random_clahe: bool = False
    scale: float = 0.0
    elastic: float = 0.0
    intensity: float = 0.0

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """A random view of an image and its label, both uint8[h h], with the same geometry.

        Half of the slices are flipped after 0 or 1 quarter turn and a quarter are rotated, as in
        the published code (the paper's implementation details). Rotation, scale and elastic field
        are one warp.
        """
        if self.random_clahe:
            image = random_clahe(image, rng)
        degrees = 0.0
        if self.published:
            draw = rng.random()
            if draw < RIGHT_ANGLE_SHARE:
                turns, axis = divmod(int(rng.integers(4)), 2)
                image, label = flip_turned(image, turns, axis), flip_turned(label, turns, axis)
            elif draw < RIGHT_ANGLE_SHARE + ROTATION_SHARE:
                degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
        if self.scale or self.elastic:
            limit = math.log1p(self.scale)
            matrix = view_matrix(label.shape[0], degrees, math.exp(rng.uniform(-limit, limit)))
            field = elastic_field(label.shape[0], self.elastic, rng) if self.elastic else None
            # Linear, not nearest as published: nearly every slice is warped here, and evaluation
            # images do not have the roughness of nearest neighbour.
            image = warp(image, matrix, field, cv2.INTER_LINEAR)
            label = warp(label, matrix, field, cv2.INTER_NEAREST)
        elif degrees:
            image, label = rotate(image, degrees), rotate(label, degrees)
        if self.intensity:
            image = jitter_intensity(image, self.intensity, rng)
        return image, label


def make_augment(data: ConfigDict) -> Augment:
    """The augmentation of `config.data`. Raises UsageError for an amount outside its limits."""
    limits = {
        "augment_scale": 1.0,
        "augment_elastic": MAX_ELASTIC * data.image_size,
        "augment_intensity": 1.0,
    }
    for field, limit in limits.items():
        if not 0 <= data[field] <= limit:
            raise UsageError(
                f"config.data.{field}: got {data[field]}, expected a number from 0 to {limit:g}"
            )
    amounts = (data.augment_scale, data.augment_elastic, data.augment_intensity)
    return Augment(data.augment, data.random_clahe, *amounts)


def flip_turned(x: np.ndarray, turns: int, axis: int) -> np.ndarray:
    """Applies 0 or 1 quarter turn, then a flip (more turns give the same four images)."""
    return cv2.flip(cv2.rotate(x, cv2.ROTATE_90_COUNTERCLOCKWISE) if turns else x, axis)


def rotate(x: np.ndarray, degrees: float) -> np.ndarray:
    """The published rotation: about the centre, by nearest neighbour even for images."""
    return warp(x, view_matrix(x.shape[0], degrees, 1.0), None, cv2.INTER_NEAREST)


def view_matrix(size: int, degrees: float, factor: float) -> np.ndarray:
    """Counter-clockwise rotation about the centre with scaling by `factor`, float64[2 3]."""
    centre = (size - 1) / 2
    return cv2.getRotationMatrix2D((centre, centre), degrees, factor)


def elastic_field(size: int, pixels: float, rng: np.random.Generator) -> Pair:
    """Smooth shifts in x and y, float32[h h] in pixels, uniform in +-`pixels` at the knots."""
    knots = rng.uniform(-pixels, pixels, (2, KNOTS, KNOTS)).astype(np.float32)
    x, y = (cv2.resize(plane, (size, size), interpolation=cv2.INTER_CUBIC) for plane in knots)
    return x, y


def warp(x: np.ndarray, matrix: np.ndarray, field: Pair | None, interpolation: int) -> np.ndarray:
    """Warps `x` uint8[h h] by `matrix`, then by `field`, with 0 (air) beyond the border."""
    size = x.shape[0]
    if field is None:
        return cv2.warpAffine(x, matrix, (size, size), flags=interpolation)
    (xx, xy, x0), (yx, yy, y0) = cv2.invertAffineTransform(matrix).astype(np.float32)
    columns = np.arange(size, dtype=np.float32)
    rows = columns[:, None]
    from_x = field[0] + (xx * columns + (xy * rows + x0))
    from_y = field[1] + (yx * columns + (yy * rows + y0))
    return cv2.remap(x, from_x, from_y, interpolation, borderMode=cv2.BORDER_CONSTANT)


def jitter_intensity(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Scales contrast about mid grey by 1 +- amount and shifts brightness by +- amount / 2."""
    contrast, shift = rng.uniform(-amount, amount, 2)
    grey = np.arange(256) - 127.5
    table = grey * (1 + contrast) + 127.5 * (1 + shift)
    return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))


def random_clahe(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies CLAHE with a random clip limit, as the published loader does on each access."""
    limit = rng.uniform(*RANDOM_CLAHE_LIMITS)
    return make_clahe(limit).apply(image)
