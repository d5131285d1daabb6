"""Loops of bowel that look alike, of which one is the rectum.

Every loop has the same wall, contents and thickenings. The slice shows the outline of each, but
not which loop is the rectum, nor at which levels its label begins and ends.
"""

from typing import NamedTuple

import numpy as np

from usam_jax.data.phantoms.canvas import (
    GAS,
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
OFF_MIDLINE = 0.25  # share of patients whose rectum is not the loop in the midline
MIDDLE, RIGHT, LEFT = range(3)  # the loops that can be the rectum, by the patient's side
# Levels where loops end, in mm of the frame; `UPPER` ones lie above the bladder.
RECTUM_BOTTOM, LOOP_BOTTOM, UPPER_BOTTOM, LOOP_TOP = (-10, 8), (-10, 45), (60, 85), (108, 150)
LABEL_STARTS, LABEL_ENDS = (0, 5), (0, 8)  # mm inside the rectum's own ends
THICKENED = 0.85  # share of loops
# A thickening is a bump or goes all around the lumen: a crescent of normal wall that is a pixel or
# two wide would have no visible outline.
BUMPS, BUMP_GROWTH, RING_GROWTH = 0.4, (0.2, 0.35), (0.88, 1)
MARGIN = 18.0  # mm of the frame that a loop's mass, fat and warp reach beyond its radius
GOLDEN = 0.6180339887498949


class Look(NamedTuple):
    """What the loops of one patient have in common."""

    wall_mm: float
    wall_hu: float  # brighter than the wall of the phantoms `single`
    content_hu: float
    mottle_hu: float
    rim: float  # fat around a loop, in mm of the frame


class Loop(NamedTuple):
    """One loop: the part of the scene around it, and signed distances there, negative inside."""

    scene: Scene
    window: tuple[slice, slice]  # rows and columns of that part
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
    more_hu = rng.uniform(4, 14)
    for loop in loops:  # first, since the fat around a loop must not hide another
        _paint_rim(loop, look)
    for loop in loops:
        _paint_loop(loop, look, more_hu)
    found, (bottom, top) = loops[rectum], loops[rectum].ends
    starts, ends = pick(rng, LABEL_STARTS, LABEL_ENDS)
    labelled = (scene.z > bottom + starts) & (scene.z < top - ends)
    labels = np.zeros(scene.image.shape, np.uint8)
    labels[:, *found.window] = np.where(found.mass < 0, 2, found.outer < 0) * labelled
    return labels


def _paint_rim(loop: Loop, look: Look) -> None:
    """Paint the fat around a loop, which shows its outline."""
    scene = loop.scene
    rim = np.minimum(loop.outer, loop.mass) - look.rim - scene.warp
    paint(scene, rim, scene.tissue.fat + 6 * scene.texture)


def _paint_loop(loop: Loop, look: Look, more_hu: float) -> None:
    """Paint wall, content and thickening, which is brighter than the wall by `more_hu`."""
    scene, lumen = loop.scene, loop.outer + look.wall_mm / loop.scene.scale
    wall = scene.tissue.wall + look.wall_hu + 5 * scene.texture
    paint(scene, loop.outer, wall)
    paint(scene, lumen, look.content_hu + look.mottle_hu * scene.texture)
    paint(scene, np.maximum(lumen, loop.gas), GAS)
    paint(scene, loop.mass, wall + more_hu)
    paint(scene, loop.slit, look.content_hu)


def _place_axes(
    scene: Scene, rng: np.random.Generator, sacrum_y: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the axes (x, y) of three loops in front of the sacrum and two above the bladder."""
    z = scene.z
    # The loops wander together, which keeps the gaps between them.
    x = wander(rng, z, 5)
    y = sacrum_y - 29 - 0.08 * z + wander(rng, z, 3)
    aside = at_levels(scene, (0, 0.3, 0.6, 1), (31, 34, 41, 44)) + rng.uniform(-1, 3)
    forward = at_levels(scene, (0, 0.5, 1), (15, 15, 20)) + rng.uniform(-3, 3)
    axes = [(x, y), (x - aside, y - forward), (x + aside, y - forward)]
    for side in (-1, 1):
        across, front = pick(rng, (24, 34), (-36, -24))
        axes.append((side * across + wander(rng, z, 4), front + wander(rng, z, 4)))
    return axes


def _make_loop(
    scene: Scene,
    rng: np.random.Generator,
    axis: tuple[np.ndarray, np.ndarray],
    bottoms: tuple[Number, Number],
) -> Loop:
    """Draw a loop along an axis, with its thickening."""
    z = scene.z
    radius, bottom, top = pick(rng, (14, 18), bottoms, LOOP_TOP)
    wide = radius * at_levels(scene, (0, 0.5, 1), (0.85, 1.05, 0.95)) * (1 + wander(rng, z, 0.08))
    deep = wide * (0.92 + wander(rng, z, 0.1))
    x, y = axis[0] + wander(rng, z, 2), axis[1] + wander(rng, z, 2)
    window = _find_window(scene, (x, y), float(max(wide.max(), deep.max())) + MARGIN)
    scene = _crop(scene, window)
    tube = ball(scene, (x, y, 0), (wide, deep, np.inf)) + 0.8 * scene.warp
    outer = np.maximum(tube, np.maximum(bottom - z, z - top))
    mass = _make_mass(scene, rng, (x, y), radius, outer)
    slit = np.maximum(outer + rng.uniform(0.72, 0.9) * np.minimum(wide, deep), mass + 5)
    gas = scene.y - y - rng.uniform(-2, 0.6) * radius
    return Loop(scene, window, outer, mass, slit, gas, (bottom, top))


def _find_window(
    scene: Scene, axis: tuple[np.ndarray, np.ndarray], reach: float
) -> tuple[slice, slice]:
    """Return the rows and columns that come as near as `reach` (mm of the frame) to an axis."""
    distances = [
        np.maximum(at.min() - line, line - at.max())
        for at, line in zip(axis, (scene.x[0], scene.y[0]), strict=True)
    ]
    near = np.maximum(*distances) < reach
    found = [np.flatnonzero(near.any(side)) for side in (1, 0)]
    rows, columns = (slice(x[0], x[-1] + 1) for x in found)
    return rows, columns


def _crop(scene: Scene, window: tuple[slice, slice]) -> Scene:
    """Return the part of the scene in a window.

    Its image is a view, so that painting the part paints the scene.
    """
    part = {x: getattr(scene, x)[:, *window] for x in ("image", "x", "y", "warp", "texture")}
    return scene._replace(**part)


def _make_mass(
    scene: Scene,
    rng: np.random.Generator,
    axis: tuple[np.ndarray, np.ndarray],
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
    # Cut at both ends, since the tips would float in the lumen as single pixels.
    ends = 10 * (np.abs(scene.z - level) - 0.88 * half_long)
    near = ends[:, 0, 0] < 30  # farther slices lie outside even with the rim
    mass = np.full_like(outer, np.inf)
    if present:
        part = scene._replace(z=scene.z[near])
        solid = ball(part, (x[near], y[near], level), (across, across, half_long))
        solid = np.maximum(solid + 0.1 * across * scene.warp[near], ends[near])
        mass[near] = np.maximum(solid, outer[near] - beyond * growth)
    return mass
