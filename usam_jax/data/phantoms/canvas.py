"""The canvas of a phantom: coordinates, tissues and simple shapes.

All coordinates are in one body frame, so that the anatomy does not depend on the resolution: x to
the image's right, y to the back, z from the perineum upwards, in mm of an average body. A patient
is this frame times `scale`; sizes that do not scale with the body, such as a wall's thickness, are
divided by it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

EXTENT_MM = 120.0  # along z, covered by any number of slices
GAS = -900.0  # HU

Number = int | float  # beartype does not accept an int as a float
Curve = Number | np.ndarray  # one value, or one per slice or pixel


class Tissue(NamedTuple):
    """HU of one patient's tissues, for `vessel` and `wall` depending on the contrast agent."""

    fat: float
    muscle: float
    wall: float  # of the bowel
    vessel: float


class Build(NamedTuple):
    """Half width and half depth of the body, and the fat under the skin, in mm of the frame."""

    wide: float
    deep: float
    fat: float


class Scene(NamedTuple):
    """The image being painted, and the positions of its pixels in the body frame."""

    image: np.ndarray  # [n h w] HU, painted in place
    x: np.ndarray  # [1 h w]
    y: np.ndarray  # [1 h w]
    z: np.ndarray  # [n 1 1]
    scale: float
    pixel_mm: float  # in mm of the scanner, not of the frame
    warp: np.ndarray  # [n h w], about unit variance, features of about 15 mm
    texture: np.ndarray  # [n h w], about unit variance, features of about 5 mm
    build: Build
    tissue: Tissue


class Pose(NamedTuple):
    """A patient's build, size and position on the table, and the field of the scanner."""

    build: Build
    scale: float
    angle: float  # radians
    shift_mm: tuple[float, float]  # (x, y)
    low_mm: float  # of the lowest slice
    field_mm: float  # the side of a slice


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw the pose of a patient."""
    fat = rng.uniform(7, 24)
    build = Build(rng.uniform(146, 156) + fat, rng.uniform(86, 94) + fat, fat)
    scale, angle, shift_x, shift_y = pick(rng, (0.85, 1.12), (-0.14, 0.14), (-8, 8), (-14, 14))
    low = pick(rng, (-6, 6))[0]
    # Radiographers fit the field of view to the patient.
    field_mm = min(max(2 * build.wide * scale * rng.uniform(1.04, 1.25), 330.0), 420.0)
    return Pose(build, scale, angle, (shift_x, shift_y), low, field_mm)


def make_scene(rng: np.random.Generator, pose: Pose, size: int, num_slices: int) -> Scene:
    """A scene of air for a patient with this pose, with its tissues drawn."""
    scale, field_mm = pose.scale, pose.field_mm
    tissue = Tissue(*pick(rng, (-122, -105), (28, 48), (26, 52), (110, 190)))
    line = (((np.arange(size) + 0.5) / size - 0.5) * field_mm).astype(np.float32)
    u, v = (line - pose.shift_mm[0]) / scale, (line[:, None] - pose.shift_mm[1]) / scale
    cos, sin = float(np.cos(pose.angle)), float(np.sin(pose.angle))
    z = ((np.arange(num_slices) + 0.5) * (EXTENT_MM / num_slices) + pose.low_mm) / scale
    return Scene(
        image=np.full((num_slices, size, size), -1000, np.float32),
        x=(cos * u + sin * v)[None],
        y=(cos * v - sin * u)[None],
        z=z.astype(np.float32)[:, None, None],
        scale=scale,
        pixel_mm=field_mm / size,
        warp=make_field(rng, (8, 24, 24), size, num_slices),
        texture=make_field(rng, (24, 72, 72), size, num_slices),
        build=pose.build,
        tissue=tissue,
    )


def make_field(
    rng: np.random.Generator, knots: tuple[int, int, int], size: int, num_slices: int
) -> np.ndarray:
    """Smooth noise [n h w], drawn at a few knots so that it is the same at every resolution."""
    coarse = rng.standard_normal(knots, dtype=np.float32)
    planes = np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_CUBIC) for p in coarse])
    at = (np.arange(num_slices) + 0.5) / num_slices * (knots[0] - 1)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(knots[0])), 0, 1).astype(np.float32)
    return 1.5 * np.tensordot(weights, planes, axes=1)  # 1.5 restores what interpolation smooths


def pick(rng: np.random.Generator, *ranges: tuple[Number, Number]) -> list[float]:
    """One number from each range."""
    # Python floats: numpy scalars would promote float32 arrays to float64.
    return [rng.uniform(low, high) for low, high in ranges]


def at_levels(scene: Scene, levels: Sequence[Number], values: Sequence[Number]) -> np.ndarray:
    """`values` at `levels` of the extent (0 to 1), linearly interpolated: [n 1 1]."""
    return np.interp(scene.z / EXTENT_MM, levels, values).astype(np.float32)


def wander(rng: np.random.Generator, z: np.ndarray, amplitude: Number) -> np.ndarray:
    """A smooth random curve around 0 along z."""
    slow, fast, phase, other = pick(rng, (0.016, 0.042), (0.042, 0.084), (0, 6.3), (0, 6.3))
    return amplitude * (0.75 * np.sin(slow * z + phase) + 0.25 * np.sin(fast * z + other))


def paint(scene: Scene, distance: np.ndarray, hu: Curve) -> None:
    """Blends `hu` in where `distance` is negative, with an edge that is one pixel wide."""
    distance = np.broadcast_to(distance, scene.image.shape)
    pixel = scene.pixel_mm / scene.scale
    inside = distance < pixel / 2
    under = scene.image[inside]
    over = hu[inside] if isinstance(hu, np.ndarray) else hu
    cover = np.minimum(0.5 - distance[inside] / pixel, 1)
    scene.image[inside] = under + cover * (over - under)


def ball(
    scene: Scene, centre: Sequence[Curve], radii: Sequence[Curve], mirrored: bool = False
) -> np.ndarray:
    """Signed distance to an ellipsoid, or to a tube if the z radius is infinite.

    It is exact to first order near the surface, so that walls have the intended thickness.
    """
    x = np.abs(scene.x) if mirrored else scene.x
    u, v = (x - centre[0]) / radii[0], (scene.y - centre[1]) / radii[1]
    w = (scene.z - centre[2]) / radii[2]
    norm = np.sqrt(u**2 + v**2 + w**2)
    slope = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
    return norm * (norm - 1) / np.maximum(slope, 1e-6)
