"""Pelvis CT phantoms: generated patients with a rectum and a tumour, for demo and tests."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from usam_jax.data.phantoms.bowel import draw_loop, draw_rectum
from usam_jax.data.phantoms.canvas import (
    EXTENT_MM,
    Pose,
    Scene,
    at_levels,
    ball,
    draw_pose,
    make_field,
    make_scene,
    paint,
    pick,
    wander,
)
from usam_jax.data.phantoms.loops import LOOPS_FIELD, choose_rectum, draw_loops
from usam_jax.io.geometry import Geometry

# Kinds of anatomy, and the version of each, to be raised whenever the same arguments give other
# bytes than before.
# single: one rectum, which its place gives away.
# loops: several loops of bowel that look alike, of which one is the rectum.
VERSIONS = {"single": 2, "loops": 1}
SLICE_MM = (2.0, 3.0, 4.0, 5.0)
MARROW = 230.0  # HU


class Phantom(NamedTuple):
    """One patient: axial slices in HU, and labels 0 background, 1 normal rectum, 2 tumour.

    Slices run from the feet up, rows from front to back, columns from the patient's right to
    left; `spacing_mm` is (z, y, x).
    """

    image: Float32[np.ndarray, "n h w"]
    labels: UInt8[np.ndarray, "n h w"]
    spacing_mm: tuple[float, float, float]


def make_patient(
    seed: int,
    patient: int,
    size: int = 128,
    num_slices: int | None = 24,
    anatomy: str = "single",
) -> Phantom:
    """Generate patient number `patient` of population `seed`, deterministically.

    Returns float32 HU and uint8 labels, both [num_slices size size]. If `num_slices` is None, the
    slice thickness is the patient's own, 2 to 5 mm. `anatomy` is a key of `VERSIONS`. Bodies depend
    on `seed`, `patient` and `anatomy` alone; the scanner's blur and noise also depend on the
    resolution.
    """
    rng, pose, num_slices = _begin(seed, patient, num_slices, anatomy)
    scene = make_scene(rng, pose, size, num_slices)
    slice_mm = EXTENT_MM / num_slices
    _draw_body(scene, rng)
    _draw_organs(scene, rng)
    if anatomy == "single":
        _draw_small_loops(scene, rng)
    _draw_vessels(scene, rng)
    _draw_bones(scene, rng)
    if anatomy == "single":
        labels = draw_rectum(scene, rng, _sacrum_y(scene))
    else:
        labels = draw_loops(scene, rng, _sacrum_y(scene), choose_rectum(seed, patient))
    image = _scan(scene.image, rng, scene.pixel_mm, slice_mm)
    return Phantom(image, labels, (slice_mm, scene.pixel_mm, scene.pixel_mm))


def patient_geometry(
    seed: int, patient: int, size: int, num_slices: int | None, anatomy: str = "single"
) -> Geometry:
    """The geometry of a patient's slices, without painting them."""
    _, pose, num_slices = _begin(seed, patient, num_slices, anatomy)
    slice_mm, pixel_mm = EXTENT_MM / num_slices, pose.field_mm / size
    affine = np.diag([-pixel_mm, -pixel_mm, slice_mm, 1.0]).tolist()
    return Geometry(
        file_shape=(size, size, num_slices),
        file_axes="LPS",
        affine=tuple(tuple(row) for row in affine),
        shape=(num_slices, size, size),
        spacing_mm=(slice_mm, pixel_mm, pixel_mm),
    )


def _begin(
    seed: int, patient: int, num_slices: int | None, anatomy: str
) -> tuple[np.random.Generator, Pose, int]:
    rng = np.random.default_rng([seed, patient])
    own_slices = round(EXTENT_MM / float(rng.choice(SLICE_MM)))
    pose = draw_pose(rng)
    if anatomy == "loops":
        pose = pose._replace(field_mm=pose.field_mm * LOOPS_FIELD)
    return rng, pose, num_slices or own_slices


def _draw_body(scene: Scene, rng: np.random.Generator) -> None:
    x, y, z, warp, tissue = scene.x, scene.y, scene.z, scene.warp, scene.tissue
    wide, deep, fat = scene.build
    lump = 1 + 0.02 * np.sin(3 * np.arctan2(y, x) + rng.uniform(0, 6.3))
    body = ((np.abs(x / wide) ** 2.3 + np.abs(y / deep) ** 2.3) ** (1 / 2.3) * lump - 1) * deep
    skin = np.maximum(body, -ball(scene, (0, deep + 2, 0), (6, 22, 70)))
    paint(scene, skin, 10)
    paint(scene, skin + 2.5, tissue.fat + 6 * warp)
    muscle = body + fat * (1 + 0.15 * y / deep) + 1.5 * warp
    # Fat runs between the muscles along the level set of a slow field.
    num_slices, size, _ = scene.image.shape
    gap = 1.5 - 15 * np.abs(make_field(rng, (6, 11, 9), size, num_slices) + 0.3)
    paint(scene, np.maximum(muscle, gap), tissue.muscle + 5 * scene.texture)
    fold = ball(scene, (0, deep - 8, 40), (30 - 0.1 * z, 26, 90)) + warp
    paint(scene, np.maximum(fold, skin + 2.5), tissue.fat)
    cavity = ball(scene, (0, 2 - 0.05 * z, 0), (58 + 0.28 * z, 72 - 0.03 * z, np.inf))
    paint(scene, np.maximum(cavity + 2 * warp, muscle + 9), tissue.fat + 7 * scene.texture)
    table = np.abs(y - deep - 20 + (x / 40) ** 2) - 1.5
    paint(scene, np.maximum(table, np.abs(x) - 140), 400)


def _draw_organs(scene: Scene, rng: np.random.Generator) -> None:
    full, middle, height = pick(rng, (0.6, 1.2), (-6, 6), (40, 55))
    bladder = ball(scene, (middle, 4 * full - 32, height), (40 * full, 27 * full, 38 * full))
    paint(scene, bladder + scene.warp, scene.tissue.muscle)
    paint(scene, bladder + scene.warp + 3, rng.uniform(-4, 12))
    prostate, uterus = ((0, -8, 14), (24, 18, 24)), ((3 * middle, -4, 62), (32, 17, 28))
    at, radii = prostate if rng.random() < 0.5 else uterus
    organ = ball(scene, at, radii) + 2.5 * scene.warp
    paint(scene, organ, scene.tissue.muscle + rng.uniform(0, 35) + 14 * scene.texture)


def _draw_small_loops(scene: Scene, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(6, 13)):
        place = pick(rng, (-65, 65), (-58, 22), (65, 125))
        draw_loop(scene, rng, place, pick(rng, (10, 24), (9, 18), (12, 36)))
    # One more loop next to the rectum, so that a ring near the sacrum is not always the rectum.
    side, *place = pick(rng, (32, 46), (14, 34), (55, 105))
    draw_loop(scene, rng, [side if rng.random() < 0.5 else -side, *place], (13, 12, 25))


def _draw_vessels(scene: Scene, rng: np.random.Generator) -> None:
    # Arteries and veins, among them some as wide and as bright as a tumour.
    for x, y, radius in ((64, -42, 5.5), (70, -30, 6.5), (48, 30, 3.5), (42, 12, 3)):
        for sign in (-1, 1):
            across = sign * (x - 14 + 0.12 * scene.z) + wander(rng, scene.z, 5)
            course = (across, y + wander(rng, scene.z, 5), 0)
            vessel = ball(scene, course, (radius, radius, np.inf))
            paint(scene, vessel, scene.tissue.vessel * rng.uniform(0.5, 1.1))


def _draw_bones(scene: Scene, rng: np.random.Generator) -> None:
    warp, texture = scene.warp, scene.texture
    cortex, thickness = pick(rng, (700, 1000), (2.5, 4))
    # Pubis to ischium at the bottom, then the acetabulum, then the wing: a rod from front to back.
    knots = (0, 0.3, 0.6, 1)
    x0, y0 = (
        at_levels(scene, knots, (20, 62, 84, 112)),
        at_levels(scene, knots, (-56, -36, -30, -36)),
    )
    x1, y1 = at_levels(scene, knots, (56, 68, 62, 54)), at_levels(scene, knots, (24, 38, 46, 58))
    u, v, dx, dy = np.abs(scene.x) - x0, scene.y - y0, x1 - x0, y1 - y0
    along = np.clip((u * dx + v * dy) / (dx**2 + dy**2), 0, 1)
    thick = at_levels(scene, knots, (10, 14, 9, 7)) - 1.5 * warp
    hip = np.hypot(u - along * dx, v - along * dy) - thick
    joint = ball(scene, (100, -2, 32), (27, 27, 29), mirrored=True)
    trochanter = ball(scene, (126, 12, 12), (13, 18, 28), mirrored=True) + warp
    sacrum_y = _sacrum_y(scene) - (scene.x / 14) ** 2
    sacrum_radii = (at_levels(scene, (0.1, 0.4, 1), (6, 26, 58)), 7 + 0.08 * scene.z, np.inf)
    sacrum = np.maximum(ball(scene, (0, sacrum_y, 0), sacrum_radii) + warp, 14 - scene.z)
    for bone in (np.maximum(hip, -joint), joint + 3.5, trochanter, sacrum):
        paint(scene, bone, cortex)
        paint(scene, bone + thickness, MARROW + 80 * texture)
    paint(scene, ball(scene, (17, sacrum_y, 90), (4, 3.5, 40), mirrored=True), 0)


def _sacrum_y(scene: Scene) -> np.ndarray:
    return at_levels(scene, (0, 0.2, 0.55, 0.8, 1), (58, 64, 76, 74, 66))


def _scan(
    image: np.ndarray, rng: np.random.Generator, pixel_mm: float, slice_mm: float
) -> np.ndarray:
    blur, sigma, trail = pick(rng, (0.45, 0.75), (28, 52), (0.8, 1.5))
    # Larger voxels average out more noise; below about 1.6 mm the scanner's blur dominates.
    sigma *= float(np.sqrt(5 / slice_mm) / np.hypot(1, pixel_mm / 1.6))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(
        noise, (0, 0.5, trail)
    )  # noise trails from hip to hip, as in CT
    return ndimage.gaussian_filter(image, (0, blur, blur)) + noise * (sigma / noise.std())
