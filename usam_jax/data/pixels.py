"""Pixels of a slice: HU to grey, resampling into the model's square and back."""

import cv2
import numpy as np


def window_hu(image: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map HU linearly to grey float32, clipped to [0, 1] outside the window."""
    grey = (image.astype(np.float32) - (level - width / 2)) / width
    return np.clip(grey, 0.0, 1.0)


def fitted_shape(
    shape: tuple[int, ...], size: int, pixel_mm: tuple[float, float]
) -> tuple[int, int, float]:
    """Rows and columns that a slice [h w] covers in [size size], and the side of a pixel in mm."""
    height, width = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale)), 1 / scale


def fit_square(
    image: np.ndarray, size: int, pixel_mm: tuple[float, float], labels: bool
) -> np.ndarray:
    """Resamples a slice [h w] to isotropic pixels and centres it in [size size], uncropped.

    `pixel_mm` is (y, x). Labels are resampled by nearest neighbour; images by area if pixels grow,
    else linearly. What the slice does not cover is 0: air, background.
    """
    h, w, _ = fitted_shape(image.shape, size, pixel_mm)
    if (h, w) != image.shape:
        shrinks = h * w < image.size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        how = cv2.INTER_NEAREST_EXACT if labels else how
        image = cv2.resize(image, (w, h), interpolation=how)
    top, left = (size - h) // 2, (size - w) // 2
    return np.pad(image, ((top, size - h - top), (left, size - w - left)))


def unfit_square(
    labels: np.ndarray, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> np.ndarray:
    """Inverts `fit_square` for labels [size size] by nearest neighbour: [h w] of the slice."""
    rows, columns = square_pixels(shape, labels.shape[0], pixel_mm)
    return labels.take(columns, axis=1).take(rows, axis=0)


def square_pixels(
    shape: tuple[int, ...], size: int, pixel_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows int[h] and columns int[w] of the square in which the pixels of a slice [h w] lie."""
    h, w, _ = fitted_shape(shape, size, pixel_mm)
    top, left = (size - h) // 2, (size - w) // 2
    return top + nearest(shape[0], h), left + nearest(shape[1], w)


def nearest(length: int, other: int) -> np.ndarray:
    """Map `length` pixels to those of `other` pixels on the same extent: int[length].

    A pixel maps to the one in which its centre lies, and on the border of two, to the second.
    """
    return (2 * np.arange(length) + 1) * other // (2 * length)
