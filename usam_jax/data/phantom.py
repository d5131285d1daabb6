"""Pelvis CT phantoms: invented patients with a rectum and a tumour, for the demo and the tests.

Everything is laid out in mm on one body frame, so a patient's anatomy does not depend on the
number of pixels: x to the image's right, y to the back, z from the perineum upwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

EXTENT_MM = 120.0  # what the slices cover along z, however many they are
GAS, FAT, MUSCLE, MARROW = -900.0, -100.0, 55.0, 150.0  # HU

Number = int | float  # an int is no float where types are checked at run time
Curve = Number | np.ndarray  # one value, or one per slice or pixel


class Phantom(NamedTuple):
    """One patient: axial slices in HU, and labels 0 background, 1 normal rectum, 2 tumour.

    Slices run from the feet up, rows from front to back; `spacing_mm` is (z, y, x).
    """

    image: Float32[np.ndarray, "n h w"]
    labels: UInt8[np.ndarray, "n h w"]
    spacing_mm: tuple[float, float, float]


class _Scene(NamedTuple):
    image: np.ndarray  # [n h w] HU, painted in place
    x: np.ndarray  # [1 h w] mm
    y: np.ndarray  # [1 h w] mm
    z: np.ndarray  # [n 1 1] mm
    pixel_mm: float
    warp: np.ndarray  # [n h w] about unit variance, features of some 15 mm
    texture: np.ndarray  # [n h w] about unit variance, features of some 5 mm


def make_patient(seed: int, patient: int, size: int = 128, num_slices: int = 24) -> Phantom:
    """Invents patient number `patient` of population `seed`; the same arguments, the same bytes.

    Gives float32 HU and uint8 labels, both [num_slices size size]. The anatomy depends on `seed`
    and `patient` alone; the scanner's blur and noise depend on the pixels as well.
    """
    rng = np.random.default_rng([seed, patient])
    scene = _make_scene(rng, size, num_slices)
    spacing_mm = (EXTENT_MM / num_slices, scene.pixel_mm, scene.pixel_mm)
    _draw_body(scene, rng)
    _draw_organs(scene, rng)
    _draw_bones(scene, rng)
    labels = _draw_rectum(scene, rng)
    return Phantom(_scan(scene.image, rng), labels, spacing_mm)


def _make_scene(rng: np.random.Generator, size: int, num_slices: int) -> _Scene:
    field_mm, scale, angle = _pick(rng, (345, 380), (0.92, 1.04), (-0.1, 0.1))
    shift_x, shift_y = _pick(rng, (-8, 8), (-12, 12))
    line = (((np.arange(size) + 0.5) / size - 0.5) * field_mm).astype(np.float32)
    u, v = (line - shift_x) / scale, (line[:, None] - shift_y) / scale
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    z = ((np.arange(num_slices) + 0.5) * (EXTENT_MM / num_slices)).astype(np.float32)
    return _Scene(
        image=np.full((num_slices, size, size), -1000, np.float32),
        x=(cos * u + sin * v)[None],
        y=(cos * v - sin * u)[None],
        z=z[:, None, None],
        pixel_mm=field_mm / size,
        warp=_make_field(rng, (8, 24, 24), size, num_slices),
        texture=_make_field(rng, (24, 72, 72), size, num_slices),
    )


def _make_field(
    rng: np.random.Generator, knots: tuple[int, int, int], size: int, num_slices: int
) -> np.ndarray:
    """Smooth noise, drawn on few knots so that it looks the same at every resolution."""
    coarse = rng.standard_normal(knots, dtype=np.float32)
    planes = np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_CUBIC) for p in coarse])
    at = (np.arange(num_slices) + 0.5) / num_slices * (knots[0] - 1)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(knots[0])), 0, 1).astype(np.float32)
    return 1.5 * np.tensordot(weights, planes, axes=1)  # 1.5 restores what interpolation smooths


def _pick(rng: np.random.Generator, *ranges: tuple[Number, Number]) -> list[float]:
    # Plain floats: numpy's own scalars would turn every float32 array to float64.
    return [rng.uniform(low, high) for low, high in ranges]


def _at_levels(scene: _Scene, levels: Sequence[Number], values: Sequence[Number]) -> np.ndarray:
    return np.interp(scene.z / EXTENT_MM, levels, values).astype(np.float32)


def _wander(rng: np.random.Generator, z: np.ndarray, amplitude: Number) -> np.ndarray:
    slow, fast, phase, other = _pick(rng, (0.016, 0.042), (0.042, 0.084), (0, 6.3), (0, 6.3))
    return amplitude * (0.75 * np.sin(slow * z + phase) + 0.25 * np.sin(fast * z + other))


def _paint(scene: _Scene, distance: np.ndarray, hu: Curve) -> None:
    """Blends `hu` in where `distance` (mm, negative inside) says so, a pixel wide at the edge."""
    distance = np.broadcast_to(distance, scene.image.shape)
    inside = distance < scene.pixel_mm / 2
    under = scene.image[inside]
    over = hu[inside] if isinstance(hu, np.ndarray) else hu
    cover = np.minimum(0.5 - distance[inside] / scene.pixel_mm, 1)
    scene.image[inside] = under + cover * (over - under)


def _ball(
    scene: _Scene, centre: Sequence[Curve], radii: Sequence[Curve], mirrored: bool = False
) -> np.ndarray:
    """Signed distance in mm, roughly, to an ellipsoid, or with an infinite z radius to a tube."""
    x = np.abs(scene.x) if mirrored else scene.x
    flat = ((x - centre[0]) / radii[0]) ** 2 + ((scene.y - centre[1]) / radii[1]) ** 2
    deep = ((scene.z - centre[2]) / radii[2]) ** 2
    return (np.sqrt(flat + deep) - 1) * np.minimum(radii[0], radii[1])


def _draw_body(scene: _Scene, rng: np.random.Generator) -> None:
    x, y, z, warp = scene.x, scene.y, scene.z, scene.warp
    wide, deep, fat, turn = _pick(rng, (156, 168), (94, 106), (12, 26), (0, 6.3))
    lump = 1 + 0.02 * np.sin(3 * np.arctan2(y, x) + turn)
    body = ((np.abs(x / wide) ** 2.3 + np.abs(y / deep) ** 2.3) ** (1 / 2.3) * lump - 1) * deep
    skin = np.maximum(body, -_ball(scene, (0, deep + 2, 0), (6, 22, 70)))
    _paint(scene, skin, 10)
    _paint(scene, skin + 2.5, FAT + 6 * warp)
    muscle = body + fat * (1 + 0.4 * y / deep) + 1.5 * warp
    # Fat runs between the muscles along the level set of a slow field.
    num_slices, size, _ = scene.image.shape
    gap = 1.5 - 15 * np.abs(_make_field(rng, (6, 11, 9), size, num_slices) + 0.3)
    _paint(scene, np.maximum(muscle, gap), MUSCLE + 5 * scene.texture)
    fold = _ball(scene, (0, deep - 8, 40), (30 - 0.1 * z, 26, 90)) + warp
    _paint(scene, np.maximum(fold, skin + 2.5), FAT)
    cavity = _ball(scene, (0, 2 - 0.05 * z, 0), (58 + 0.28 * z, 72 - 0.03 * z, np.inf))
    _paint(scene, np.maximum(cavity + 2 * warp, muscle + 9), FAT + 5 * scene.texture)
    table = np.abs(y - deep - 20 + (x / 40) ** 2) - 1.5
    _paint(scene, np.maximum(table, np.abs(x) - 140), 400)


def _draw_organs(scene: _Scene, rng: np.random.Generator) -> None:
    full, middle, height = _pick(rng, (0.6, 1.1), (-6, 6), (40, 55))
    bladder = _ball(scene, (middle, 4 * full - 32, height), (40 * full, 27 * full, 38 * full))
    _paint(scene, bladder + scene.warp, 45)
    _paint(scene, bladder + scene.warp + 3, rng.uniform(0, 14))
    prostate, uterus = ((0, -8, 14), (24, 18, 24)), ((3 * middle, -4, 62), (32, 17, 28))
    at, radii = prostate if rng.random() < 0.5 else uterus
    organ = _ball(scene, at, radii) + 2.5 * scene.warp
    _paint(scene, organ, rng.uniform(60, 95) + 14 * scene.texture)
    for _ in range(rng.integers(6, 11)):
        place = _pick(rng, (-65, 65), (-58, 22), (65, 125))
        _draw_loop(scene, rng, place, _pick(rng, (10, 24), (9, 18), (12, 36)))
    # One more beside the rectum, so that being a ring near the sacrum is not enough.
    side, *place = _pick(rng, (32, 46), (14, 34), (55, 105))
    _draw_loop(scene, rng, [side if rng.random() < 0.5 else -side, *place], (13, 12, 25))
    contrast = rng.uniform(120, 190)
    for x, y, radius in ((64, -42, 5.5), (70, -30, 6.5), (48, 30, 3.5), (42, 12, 3)):
        for sign in (-1, 1):
            across = sign * (x - 14 + 0.12 * scene.z) + _wander(rng, scene.z, 5)
            course = (across, y + _wander(rng, scene.z, 5), 0)
            vessel = _ball(scene, course, (radius, radius, np.inf))
            _paint(scene, vessel, contrast * rng.uniform(0.75, 1.1))


def _draw_loop(
    scene: _Scene, rng: np.random.Generator, centre: Sequence[Number], radii: Sequence[Number]
) -> None:
    x, y = centre[0] + _wander(rng, scene.z, 10), centre[1] + _wander(rng, scene.z, 6)
    loop = _ball(scene, (x, y, centre[2]), radii) + 2 * scene.warp
    wall, wall_hu = _pick(rng, (3, 5), (70, 115))
    _paint(scene, loop, wall_hu)
    _fill_lumen(scene, rng, loop + wall, y, radii[1])


def _fill_lumen(
    scene: _Scene, rng: np.random.Generator, lumen: np.ndarray, y: Curve, radius: Number
) -> None:
    base, mottle, surface = _pick(rng, (10, 55), (2, 20), (-1.6, 0.6))
    _paint(scene, lumen, base + mottle * scene.texture)
    # The patient lies on the back: gas collects in front of a level surface.
    _paint(scene, np.maximum(lumen, scene.y - y - surface * radius), GAS)


def _draw_bones(scene: _Scene, rng: np.random.Generator) -> None:
    warp, texture = scene.warp, scene.texture
    cortex, thickness = _pick(rng, (700, 1000), (2.5, 4))
    # Pubis to ischium at the bottom, then the acetabulum, then the wing: a rod from front to back.
    knots = (0, 0.3, 0.6, 1)
    x0, y0 = (
        _at_levels(scene, knots, (20, 62, 84, 112)),
        _at_levels(scene, knots, (-56, -36, -30, -36)),
    )
    x1, y1 = _at_levels(scene, knots, (56, 68, 62, 54)), _at_levels(scene, knots, (24, 38, 46, 58))
    u, v, dx, dy = np.abs(scene.x) - x0, scene.y - y0, x1 - x0, y1 - y0
    along = np.clip((u * dx + v * dy) / (dx**2 + dy**2), 0, 1)
    thick = _at_levels(scene, knots, (10, 14, 9, 7)) - 1.5 * warp
    hip = np.hypot(u - along * dx, v - along * dy) - thick
    joint = _ball(scene, (100, -2, 32), (27, 27, 29), mirrored=True)
    trochanter = _ball(scene, (126, 12, 12), (13, 18, 28), mirrored=True) + warp
    sacrum_y = _sacrum_y(scene) - (scene.x / 14) ** 2
    sacrum_radii = (_at_levels(scene, (0.1, 0.4, 1), (6, 26, 58)), 7 + 0.08 * scene.z, np.inf)
    sacrum = np.maximum(_ball(scene, (0, sacrum_y, 0), sacrum_radii) + warp, 14 - scene.z)
    for bone in (np.maximum(hip, -joint), joint + 3.5, trochanter, sacrum):
        _paint(scene, bone, cortex)
        _paint(scene, bone + thickness, MARROW + 70 * texture)
    _paint(scene, _ball(scene, (17, sacrum_y, 90), (4, 3.5, 40), mirrored=True), 0)


def _sacrum_y(scene: _Scene) -> np.ndarray:
    return _at_levels(scene, (0, 0.2, 0.55, 0.8, 1), (58, 64, 76, 74, 66))


def _draw_rectum(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    z, warp, texture = scene.z, scene.warp, scene.texture
    radius, wall, wall_hu, room = _pick(rng, (15, 22), (3.5, 7), (68, 90), (5, 12))
    bottom, top = _pick(rng, (-4, 10), (96, 124))
    ampulla = radius * _at_levels(scene, (0, 0.4, 1), (0.75, 1.1, 0.9))
    wide = ampulla * (1 + _wander(rng, z, 0.12))
    deep = wide * (0.9 + _wander(rng, z, 0.15))
    x = _wander(rng, z, 10) * (0.3 + z / EXTENT_MM)
    y = _sacrum_y(scene) - 8 - 0.08 * z - deep - room + _wander(rng, z, 2)
    tube = _ball(scene, (x, y, 0), (wide, deep, np.inf)) + 1.8 * warp
    outer = np.maximum(tube, np.maximum(bottom - z, z - top))
    tumour = _make_tumour(scene, rng, (x, y), radius, (bottom, top), outer)
    fascia = np.minimum(np.maximum(tube, z - top), tumour) - rng.uniform(5, 10) - warp
    _paint(scene, fascia, FAT)
    _paint(scene, np.maximum(np.abs(fascia) - 2, z - 34), MUSCLE)
    _paint(scene, np.maximum(tube + 2, z - bottom), MUSCLE)  # the sphincter, no part of the rectum
    _paint(scene, outer, wall_hu + 5 * texture)
    _fill_lumen(scene, rng, outer + wall, y, radius)
    # What the tumour leaves of the lumen is a slit, and belongs to it.
    more_hu, left = _pick(rng, (28, 42), (0.72, 0.9))
    slit = np.maximum(outer + left * radius, tumour + 5)
    _paint(scene, tumour, wall_hu + more_hu + 9 * texture)
    _paint(scene, slit, GAS if rng.random() < 0.4 else 30.0)
    return np.where(tumour < 0, 2, outer < 0).astype(np.uint8)


def _make_tumour(
    scene: _Scene,
    rng: np.random.Generator,
    axis: tuple[np.ndarray, np.ndarray],
    radius: float,
    ends: tuple[float, float],
    rectum: np.ndarray,
) -> np.ndarray:
    """Signed distance in mm to a mass on the wall, from a small bump to all around the lumen."""
    present = rng.random() >= 0.15
    aside, turn, size, half_long, place, beyond = _pick(
        rng, (0.1, 0.9), (0, 6.3), (0.45, 0.8), (10, 34), (0.15, 0.85), (0, 4)
    )
    # The nearer the mass is to the axis the larger: small ones hang on the wall.
    across = radius * (size + 0.9 * (1 - aside))
    x = axis[0] + aside * radius * float(np.cos(turn))
    y = axis[1] + aside * radius * float(np.sin(turn))
    z = ends[0] + place * (ends[1] - ends[0])
    mass = _ball(scene, (x, y, z), (across, across, half_long)) + 1.8 * scene.warp
    # Cut blunt at both ends: the tips would float in the lumen as single pixels.
    mass = np.maximum(mass + 0.4 * scene.texture, np.abs(scene.z - z) - 0.88 * half_long)
    mass = np.maximum(mass, rectum - beyond)
    return mass if present else np.full_like(mass, np.inf)


def _scan(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blur, sigma, trail = _pick(rng, (0.55, 0.85), (12, 20), (0.7, 1.1))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, 0.5, trail))  # longer from hip to hip, as in CT
    return ndimage.gaussian_filter(image, (0, blur, blur)) + noise * (sigma / noise.std())
