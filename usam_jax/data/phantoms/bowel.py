"""A phantom's bowel: the rectum with its tumour, and loops that look like it."""

from collections.abc import Sequence

import numpy as np

from usam_jax.data.phantoms.canvas import (
    EXTENT_MM,
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


def draw_loop(
    scene: Scene, rng: np.random.Generator, centre: Sequence[Number], radii: Sequence[Number]
) -> None:
    """Paints a loop of bowel with the wall thickness and brightness of a rectum."""
    x, y = centre[0] + wander(rng, scene.z, 10), centre[1] + wander(rng, scene.z, 6)
    loop = ball(scene, (x, y, centre[2]), radii) + 2 * scene.warp
    wall_mm, more_hu = pick(rng, (2.5, 6), (-6, 14))
    paint(scene, loop, scene.tissue.wall + more_hu + 5 * scene.texture)
    _fill_lumen(scene, rng, loop + wall_mm / scene.scale, y, radii[1])


def _fill_lumen(
    scene: Scene, rng: np.random.Generator, lumen: np.ndarray, y: Curve, radius: Number
) -> None:
    base, mottle, surface = pick(rng, (0, 32), (2, 16), (-2, 0.6))
    paint(scene, lumen, base + mottle * scene.texture)
    # The patient lies on the back: gas collects in front of a level surface.
    paint(scene, np.maximum(lumen, scene.y - y - surface * radius), GAS)


def draw_rectum(scene: Scene, rng: np.random.Generator, sacrum_y: np.ndarray) -> np.ndarray:
    """Paints the rectum in front of the sacrum, and returns labels uint8[n h w] with its lumen."""
    z, warp, texture, tissue = scene.z, scene.warp, scene.texture, scene.tissue
    radius, wall_mm, room = pick(rng, (14, 22), (3, 8), (5, 12))
    bottom, top = pick(rng, (-4, 10), (100, 135))
    ampulla = radius * at_levels(scene, (0, 0.4, 1), (0.8, 1.1, 0.9))
    wide = ampulla * (1 + wander(rng, z, 0.12))
    deep = wide * (0.9 + wander(rng, z, 0.15))
    x = wander(rng, z, 10) * (0.3 + z / EXTENT_MM)
    y = sacrum_y - 8 - 0.08 * z - deep - room + wander(rng, z, 2)
    tube = ball(scene, (x, y, 0), (wide, deep, np.inf)) + 1.2 * warp
    outer = np.maximum(tube, np.maximum(bottom - z, z - top))
    tumour = _make_tumour(scene, rng, (x, y), radius, (bottom, top), outer)
    fascia = np.minimum(np.maximum(tube, z - top), tumour) - rng.uniform(5, 10) - warp
    paint(scene, fascia, tissue.fat + 6 * texture)
    levator = np.maximum(np.abs(fascia) - 1.5, z - 34)  # a sling, open to the front
    paint(scene, np.maximum(levator, y - 4 - scene.y), tissue.muscle)
    _draw_nodes(scene, rng, (x, y), radius + 5)
    # The sphincter is not part of the rectum.
    paint(scene, np.maximum(tube + 2, z - bottom), tissue.muscle)
    paint(scene, outer, tissue.wall + 5 * texture)
    _fill_lumen(scene, rng, outer + wall_mm / scene.scale, y, radius)
    # The tumour leaves a slit of the lumen, which is labelled as tumour.
    more_hu, left = pick(rng, (12, 34), (0.72, 0.9))
    slit = np.maximum(outer + left * np.minimum(wide, deep), tumour + 5)
    paint(scene, tumour, tissue.wall + more_hu + 8 * texture)
    paint(scene, slit, GAS if rng.random() < 0.3 else 15.0)
    return np.where(tumour < 0, 2, outer < 0).astype(np.uint8)


def _draw_nodes(
    scene: Scene, rng: np.random.Generator, axis: tuple[np.ndarray, np.ndarray], away: float
) -> None:
    """Paints lymph nodes and vessels in the fat around the rectum, some as bright as a tumour."""
    for _ in range(rng.integers(3, 10)):
        turn, size, far, level, more_hu = pick(
            rng, (0, 6.3), (1.5, 4), (0, 6), (10, 115), (-10, 50)
        )
        x = axis[0] + (away + far) * float(np.cos(turn))
        y = axis[1] + 0.9 * (away + far) * float(np.sin(turn))
        node = ball(scene, (x, y, level), (size, size, 2 * size))
        paint(scene, node, scene.tissue.wall + more_hu)


def _make_tumour(
    scene: Scene,
    rng: np.random.Generator,
    axis: tuple[np.ndarray, np.ndarray],
    radius: float,
    ends: tuple[float, float],
    rectum: np.ndarray,
) -> np.ndarray:
    """Signed distance to a mass on the wall, from a bump of 0.3 ml to all around the lumen."""
    present = rng.random() >= 0.15
    growth, turn, long, place, beyond = pick(
        rng, (0, 1), (0, 6.3), (0.85, 1.15), (0.15, 0.8), (0, 5)
    )
    # Larger masses are nearer to the axis: small ones sit on the wall.
    aside = 0.95 - 0.85 * growth
    across, half_long = radius * (0.34 + 1.2 * growth), long * (5.5 + 28.5 * growth)
    x = axis[0] + aside * radius * float(np.cos(turn))
    y = axis[1] + aside * radius * float(np.sin(turn))
    z = ends[0] + place * (ends[1] - ends[0])
    uneven = min(1.8, 0.12 * across) * scene.warp + 0.4 * scene.texture
    mass = ball(scene, (x, y, z), (across, across, half_long)) + uneven
    # Cut the mass at both ends, since the tips would float in the lumen as single pixels; steeply,
    # so that the last slice is not half gas that is labelled as tumour.
    mass = np.maximum(mass, 10 * (np.abs(scene.z - z) - 0.88 * half_long))
    mass = np.maximum(mass, rectum - beyond * growth)
    return mass if present else np.full_like(mass, np.inf)
