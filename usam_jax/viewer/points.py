"""Prompts as the points file that `usam-predict --points` reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from usam_jax.io.geometry import Geometry, to_slices
from usam_jax.viewer.slice_state import Prompts

# Clicks are multiples of this part of a pixel, which floats hold exactly: mirroring an axis and
# back then gives the same numbers.
STEPS_PER_PIXEL = 64


def snap(value: float) -> float:
    """Round a coordinate in pixels to what a points file keeps exactly."""
    return round(value * STEPS_PER_PIXEL) / STEPS_PER_PIXEL


def to_voxel(at: Sequence[float], geometry: Geometry) -> list[float]:
    """Convert column, row and slice number to indices along the file's own axes."""
    shape = geometry.file_shape
    voxel = [0.0, 0.0, 0.0]
    for axis, (target, direction) in enumerate(to_slices(np.array(geometry.affine))):
        value = at[int(target)]
        voxel[axis] = value if direction > 0 else shape[axis] - 1 - value
    return voxel


def points_file(
    prompts: Mapping[int, Prompts], geometry: Geometry, classes: Sequence[str], named: bool
) -> dict[str, Any]:
    """Return the content of a points file for prompts by slice.

    If `named`, points on the target name their class, which interactive networks need.
    """
    points: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, (given, box) in sorted(prompts.items()):
        for x, y, c in given:
            point: dict[str, Any] = {"at": to_voxel((x, y, number), geometry)}
            point |= {"class": classes[c]} if named and c else {"label": int(c > 0)}
            points.append(point)
        if box is not None:
            ends = [to_voxel((*corner, number), geometry) for corner in (box[:2], box[2:])]
            boxes.append({"from": ends[0], "to": ends[1]})
    return {"space": "voxel", "points": points, "boxes": boxes}
