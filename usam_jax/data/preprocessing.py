"""Converts a slice to a model's input, and the model's output back to the slice's pixels.

The steps are those with which the model's training data were packed.
"""

import dataclasses
import pathlib
from typing import Any

import cv2
import numpy as np

from usam_jax.data.datasets.registry import get_spec
from usam_jax.data.packed.encode import make_clahe, pack_image
from usam_jax.data.pixels import fitted_shape, square_pixels, unfit_square, window_hu
from usam_jax.utils.files import read_json
from usam_jax.utils.workdir import Workdir

MIN_SIZE = 32  # pixels, of the smallest slice that is accepted
# Height and width in mm; if they are unknown, only their ratio is used.
Pixel = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The steps from a slice to uint8[size size], `transposed` if the training data were."""

    size: int
    level: float
    width: float
    intensity: str
    clahe_limit: float
    transposed: bool

    def from_hu(self, hu: np.ndarray, pixel_mm: Pixel) -> np.ndarray:
        """Converts an upright slice [h w] in HU to uint8[size size]."""
        return self.from_grey(window_hu(hu, self.level, self.width), pixel_mm)

    def from_grey(self, grey: np.ndarray, pixel_mm: Pixel = (1.0, 1.0)) -> np.ndarray:
        """Converts an upright slice float[h w], grey in [0, 1], to uint8[size size]."""
        if self.transposed:
            grey, pixel_mm = grey.T, pixel_mm[::-1]
        clahe = make_clahe(self.clahe_limit)
        return pack_image(grey, self.size, self.intensity, clahe, pixel_mm)

    def labels_back(
        self, labels: np.ndarray, shape: tuple[int, int], pixel_mm: Pixel
    ) -> np.ndarray:
        """Map labels uint8[size size] back to the slice's own pixels, uint8[h w]."""
        if self.transposed:
            return unfit_square(labels, shape[::-1], pixel_mm[::-1]).T
        return unfit_square(labels, shape, pixel_mm)

    def probabilities_back(
        self, probabilities: np.ndarray, shape: tuple[int, int], pixel_mm: Pixel
    ) -> np.ndarray:
        """Map probabilities float32[size size k] back linearly, to float32[h w k]."""
        if self.transposed:
            shape, pixel_mm = shape[::-1], pixel_mm[::-1]
        top, left, h, w = self.place(shape, pixel_mm)
        inside = np.ascontiguousarray(probabilities[top : top + h, left : left + w])
        planes = [
            cv2.resize(inside[..., i], shape[::-1], interpolation=cv2.INTER_LINEAR)
            for i in range(inside.shape[-1])
        ]
        found = np.stack(planes, axis=-1)
        return found.transpose(1, 0, 2) if self.transposed else found

    def probabilities_in(self, probabilities: np.ndarray, pixel_mm: Pixel) -> np.ndarray:
        """Map probabilities float32[h w k] of a slice to float32[size size k].

        The rest of the square is background.
        """
        if self.transposed:
            probabilities, pixel_mm = probabilities.transpose(1, 0, 2), pixel_mm[::-1]
        rows, columns, k = probabilities.shape
        top, left, h, w = self.place((rows, columns), pixel_mm)
        placed = np.zeros((self.size, self.size, k), np.float32)
        placed[..., 0] = 1
        for i in range(k):
            plane = np.ascontiguousarray(probabilities[..., i])
            resized = cv2.resize(plane, (w, h), interpolation=cv2.INTER_LINEAR)
            placed[top : top + h, left : left + w, i] = resized
        return placed

    def points_in(self, xy: np.ndarray, shape: tuple[int, int], pixel_mm: Pixel) -> np.ndarray:
        """Map points float[n 2] (x, y) of a slice [h w] to the model's input, float32[n 2]."""
        if self.transposed:
            xy, shape, pixel_mm = xy[:, ::-1], shape[::-1], pixel_mm[::-1]
        top, left, h, w = self.place(shape, pixel_mm)
        scale = np.array([w / shape[1], h / shape[0]])
        return ((xy + 0.5) * scale - 0.5 + [left, top]).astype(np.float32)

    def pixels_in(self, xy: np.ndarray, shape: tuple[int, int], pixel_mm: Pixel) -> np.ndarray:
        """Map points float[n 2] (x, y) of a slice [h w] to pixels of the model's input.

        `labels_back` gives a point's pixel in the slice the label of the returned int[n 2] (x, y).
        """
        if self.transposed:
            xy, shape, pixel_mm = xy[:, ::-1], shape[::-1], pixel_mm[::-1]
        rows, columns = square_pixels(shape, self.size, pixel_mm)
        x, y = np.floor(xy + 0.5).astype(int).clip(0, np.array(shape[::-1]) - 1).T
        return np.stack([columns[x], rows[y]], axis=1)

    def place(self, shape: tuple[int, int], pixel_mm: Pixel) -> tuple[int, int, int, int]:
        """Top, left, rows and columns that a slice covers in the model's square."""
        h, w, _ = fitted_shape(shape, self.size, pixel_mm)
        return (self.size - h) // 2, (self.size - w) // 2, h, w


def source_kind(workdir: pathlib.Path, saved: dict[str, Any]) -> str:
    """The kind of the data set that a run was trained on, even if it was packed before."""
    return read_json(Workdir(workdir).data).get("kind", saved["data"]["kind"])


def make_preparation(saved: dict[str, Any], kind: str) -> Preparation:
    """The preparation of a run, from its saved config and the kind of its data set."""
    data = saved["data"]
    return Preparation(
        size=saved["model"]["image_size"],
        level=data["window_level"],
        width=data["window_width"],
        intensity=data["intensity"],
        clahe_limit=data["clahe_limit"],
        transposed=get_spec(kind).transposed,
    )
