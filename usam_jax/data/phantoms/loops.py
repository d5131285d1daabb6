"""Loops of bowel that look alike, of which one is the rectum.

Every loop has the same wall, contents and thickenings. The slice shows the outline of each, but
not which loop is the rectum, nor at which levels its label begins and ends.
"""

from typing import NamedTuple

import numpy as np

from usam_jax.data.phantoms.canvas import (
    GAS,
    Curve,
    Number,
    Scene,
    at_levels,
    ball,
    paint,
    pick,
    wander,
)

# Share of the scanner's field: around the pelvis rather than the body, so that a loop of 30 mm is a
# dozen pixels wide in the demo's slices.
LOOPS_FIELD = 0.6
OFF_MIDLINE = 0.3  # share of patients whose rectum is not the loop in the midline
MIDDLE, RIGHT, LEFT = range(3)  # the loops that can be the rectum, by the patient's side
# Levels where loops end, in mm of the frame; `UPPER` ones lie above the bladder.
RECTUM_BOTTOM, LOOP_BOTTOM, UPPER_BOTTOM, LOOP_TOP = (-10, 8), (-10, 45), (60, 85), (108, 150)
LABEL_STARTS, LABEL_ENDS = (0, 5), (0, 8)  # mm inside the rectum's own ends
THICKENED = 0.85  # share of loops
# A thickening is a bump or goes all around the lumen: a crescent of normal wall that is a pixel or
# two wide would have no visible outline.
BUMPS, BUMP_GROWTH, RING_GROWTH = 0.4, (0.2, 0.35), (0.88, 1)
GOLDEN = 0.6180339887498949


class Look(NamedTuple):
    """What the loops of one patient have in common."""

    wall_mm: float
    wall_hu: float  # brighter than the wall of the phantoms `single`
    content_hu: float
    mottle_hu: float
    rim: float  # fat around a loop, in mm of the frame


class Loop(NamedTuple):
    """Signed distances float32[n h w] of one loop, negative inside."""

    outer: np.ndarray
    mass: np.ndarray  # the thickening, infinite if there is none
    slit: np.ndarray  # of the lumen, that the thickening leaves
    gas: np.ndarray  # half space in front of the fluid's surface
    ends: tuple[float, float]  # levels, mm of the frame


def choose_rectum(seed: int, patient: int) -> int:
    """Return MIDDLE, RIGHT or LEFT: the place of a patient's rectum.

    Consecutive patients follow a golden-ratio sequence, so that a small test set has the share
    `OFF_MIDLINE` too.
    """
    at = (np.random.default_rng(seed).random() + GOLDEN * patient) % 1
    if at >= OFF_MIDLINE:
        return MIDDLE
    return RIGHT if at < OFF_MIDLINE / 2 else LEFT


def draw_loops(
    scene: Scene, rng: np.random.Generator, sacrum_y: np.ndarray, rectum: int
) -> np.ndarray:
    """Paint all loops, and return the labels uint8[n h w] of the loop `rectum`."""
    look = Look(*pick(rng, (4, 6), (25, 40), (-25, -5), (2, 8), (4, 7)))
    bottoms = [RECTUM_BOTTOM if i == rectum else LOOP_BOTTOM for i in range(3)]
    bottoms += [UPPER_BOTTOM, UPPER_BOTTOM]
    axes = _place_axes(scene, rng, sacrum_y)
    loops = [_make_loop(scene, rng, *x) for x in zip(axes, bottoms, strict=True)]
    _paint_loops(scene, loops, look, more_hu=rng.uniform(4, 14))
    found, (bottom, top) = loops[rectum], loops[rectum].ends
    starts, ends = pick(rng, LABEL_STARTS, LABEL_ENDS)
    labelled = (scene.z > bottom + starts) & (scene.z < top - ends)
    return (np.where(found.mass < 0, 2, found.outer < 0) * labelled).astype(np.uint8)


def _paint_loops(scene: Scene, loops: list[Loop], look: Look, more_hu: float) -> None:
    """Paint loops in a rim of fat, which shows their outlines."""
    fat = scene.tissue.fat + 6 * scene.texture
    outer, mass, slit = (
        np.minimum.reduce([getattr(x, name) for x in loops]) for name in ("outer", "mass", "slit")
    )
    inner = look.wall_mm / scene.scale
    gas = np.minimum.reduce([np.maximum(x.outer + inner, x.gas) for x in loops])
    wall = scene.tissue.wall + look.wall_hu + 5 * scene.texture
    paint(scene, np.minimum(outer, mass) - look.rim - scene.warp, fat)
    paint(scene, outer, wall)
    paint(scene, outer + inner, look.content_hu + look.mottle_hu * scene.texture)
    paint(scene, gas, GAS)
    paint(scene, mass, wall + more_hu)
    paint(scene, slit, look.content_hu)


def _place_axes(
    scene: Scene, rng: np.random.Generator, sacrum_y: np.ndarray
) -> list[tuple[Curve, Curve]]:
    """Draw the axes (x, y) of three loops in front of the sacrum and two above the bladder."""
    z = scene.z
    # The loops wander together, which keeps the gaps between them.
    x = wander(rng, z, 5)
    y = sacrum_y - 29 - 0.08 * z + wander(rng, z, 3)
    aside = at_levels(scene, (0, 0.3, 0.6, 1), (31, 34, 41, 44)) + rng.uniform(-1, 3)
    forward = at_levels(scene, (0, 0.5, 1), (15, 15, 20)) + rng.uniform(-3, 3)
    axes: list[tuple[Curve, Curve]] = [(x, y), (x - aside, y - forward), (x + aside, y - forward)]
    for side in (-1, 1):
        across, front = pick(rng, (24, 34), (-36, -24))
        axes.append((side * across + wander(rng, z, 4), front + wander(rng, z, 4)))
    return axes


def _make_loop(
    scene: Scene,
    rng: np.random.Generator,
    axis: tuple[Curve, Curve],
    bottoms: tuple[Number, Number],
) -> Loop:
    """Draw a loop along an axis, with its thickening."""
    z = scene.z
    radius, bottom, top = pick(rng, (14, 18), bottoms, LOOP_TOP)
    wide = radius * at_levels(scene, (0, 0.5, 1), (0.85, 1.05, 0.95)) * (1 + wander(rng, z, 0.08))
    deep = wide * (0.92 + wander(rng, z, 0.1))
    x, y = axis[0] + wander(rng, z, 2), axis[1] + wander(rng, z, 2)
    tube = ball(scene, (x, y, 0), (wide, deep, np.inf)) + 0.8 * scene.warp
    outer = np.maximum(tube, np.maximum(bottom - z, z - top))
    mass = _make_mass(scene, rng, (x, y), radius, outer)
    slit = np.maximum(outer + rng.uniform(0.72, 0.9) * np.minimum(wide, deep), mass + 5)
    gas = np.broadcast_to(scene.y - y - rng.uniform(-2, 0.6) * radius, outer.shape)
    return Loop(outer, mass, slit, gas, (bottom, top))


def _make_mass(
    scene: Scene,
    rng: np.random.Generator,
    axis: tuple[Curve, Curve],
    radius: float,
    outer: np.ndarray,
) -> np.ndarray:
    """Draw a thickening of the wall: a bump, or all around the lumen."""
    present = rng.random() < THICKENED
    growths = BUMP_GROWTH if rng.random() < BUMPS else RING_GROWTH
    growth, turn, level, beyond = pick(rng, growths, (0, 6.3), (18, 100), (0, 3))
    # Larger masses are nearer to the axis: small ones sit on the wall.
    aside = radius * (0.95 - 0.85 * growth)
    across, half_long = radius * (0.34 + 1.2 * growth), 8 + 18 * growth
    x = axis[0] + aside * float(np.cos(turn))
    y = axis[1] + aside * float(np.sin(turn))
    mass = ball(scene, (x, y, level), (across, across, half_long)) + 0.1 * across * scene.warp
    # Cut the mass at both ends, since the tips would float in the lumen as single pixels.
    mass = np.maximum(mass, 10 * (np.abs(scene.z - level) - 0.88 * half_long))
    mass = np.maximum(mass, outer - beyond * growth)
    return mass if present else np.full_like(mass, np.inf)
