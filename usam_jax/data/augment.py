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

    def draw(self, size: int, rng: np.random.Generator) -> "View":
        """Draw a random view of slices of `size` pixels per side.

        Half of the slices are flipped after 0 or 1 quarter turn and a quarter are rotated, as in
        the published code (the paper's implementation details). Rotation, scale and elastic field
        are one warp.
        """
        clahe_limit = rng.uniform(*RANDOM_CLAHE_LIMITS) if self.random_clahe else 0.0
        turn, degrees, matrix, field = None, 0.0, None, None
        if self.published:
            draw = rng.random()
            if draw < RIGHT_ANGLE_SHARE:
                turn = divmod(int(rng.integers(4)), 2)
            elif draw < RIGHT_ANGLE_SHARE + ROTATION_SHARE:
                degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
        if self.scale or self.elastic:
            limit = math.log1p(self.scale)
            matrix = view_matrix(size, degrees, math.exp(rng.uniform(-limit, limit)))
            field = elastic_field(size, self.elastic, rng) if self.elastic else None
        table = intensity_table(self.intensity, rng) if self.intensity else None
        return View(clahe_limit, turn, degrees, matrix, field, table)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        """A random view of an image and its label, both uint8[h h], with the same geometry."""
        view = self.draw(label.shape[0], rng)
        return view.image(image), view.label(label)


@dataclasses.dataclass(frozen=True)
class View:
    """One drawn augmentation, the same for every slice that it is applied to, uint8[h h].

    `turn` is a number of quarter turns and the axis of the flip after them. `matrix` float64[2 3]
    and `field` warp; without a matrix, `degrees` rotate. `table` uint8[256] maps grey values.
    """

    clahe_limit: float
    turn: tuple[int, int] | None
    degrees: float
    matrix: np.ndarray | None
    field: Pair | None
    table: np.ndarray | None

    def image(self, x: np.ndarray) -> np.ndarray:
        """The view of an image."""
        if self.clahe_limit:
            x = make_clahe(self.clahe_limit).apply(x)
        # Linear, not nearest as published: nearly every slice is warped here, and evaluation
        # images do not have the roughness of nearest neighbour.
        x = self.place(x, cv2.INTER_LINEAR)
        return x if self.table is None else cv2.LUT(x, self.table)

    def label(self, x: np.ndarray) -> np.ndarray:
        """The view of a label."""
        return self.place(x, cv2.INTER_NEAREST)

    def place(self, x: np.ndarray, interpolation: int) -> np.ndarray:
        """The geometry of the view."""
        if self.turn:
            x = flip_turned(x, *self.turn)
        if self.matrix is not None:
            return warp(x, self.matrix, self.field, interpolation)
        return rotate(x, self.degrees) if self.degrees else x


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


def intensity_table(amount: float, rng: np.random.Generator) -> np.ndarray:
    """Map of grey values uint8[256] with another contrast and brightness.

    Contrast about mid grey is scaled by 1 +- amount, brightness shifted by +- amount / 2 of white.
    """
    contrast, shift = rng.uniform(-amount, amount, 2)
    grey = np.arange(256) - 127.5
    table = grey * (1 + contrast) + 127.5 * (1 + shift)
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)
