"""Planes of a volume as the page draws them: radiological, head up, nose left."""

import numpy as np

AXES = ("axial", "coronal", "sagittal")


def plane(volume: np.ndarray, axis: str, index: int) -> np.ndarray:
    """Return a plane [rows columns] of slices [n h w], which lie L, P, S.

    Raises IndexError if the plane does not exist.
    """
    if not 0 <= index < count(volume.shape, axis):
        raise IndexError(f"{axis} {index} of {count(volume.shape, axis)}")
    if axis == "axial":
        return volume[index]
    return volume[::-1, index] if axis == "coronal" else volume[::-1, :, index]


def count(shape: tuple[int, ...], axis: str) -> int:
    """Return the number of planes along an axis."""
    return shape[AXES.index(axis)]


def display_hu(values: np.ndarray) -> np.ndarray:
    """Return HU as little-endian int16, rounded and clipped, for display only."""
    return np.clip(np.rint(values), -32768, 32767).astype("<i2")
