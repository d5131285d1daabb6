"""Points and boxes that people give for a volume, to prompts of its slices.

A points file is JSON: `{"space": "voxel", "points": [{"at": [i, j, k], "label": 1}], "boxes":
[{"from": [i, j, k], "to": [i, j, k]}]}`. `voxel` counts along the file's own axes from 0; `world` is
mm to the patient's right, front and head (RAS), as NIfTI counts them. A label is 1 on the target, 0 off it.
"""

import json
import pathlib
from typing import Any

import numpy as np

from usam_jax.io.geometry import Geometry, to_slices
from usam_jax.predict.model import NO_CLICKS, Clicks
from usam_jax.utils.errors import UsageError

SPACES = ("voxel", "world")
EXAMPLE = (
    '{"space": "voxel", "points": [{"at": [120, 140, 33], "label": 1}], '
    '"boxes": [{"from": [90, 110, 30], "to": [150, 170, 36]}]}'
)


def read_clicks(path: pathlib.Path, geometry: Geometry) -> dict[int, Clicks]:
    """The prompts of a points file by slice, in pixels (x, y) of the slices.

    Raises UsageError for other keys, values that are no points, and points outside the volume.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected {EXAMPLE}") from error
    require_keys(path, content, {"space"}, {"points", "boxes"})
    if content["space"] not in SPACES:
        raise UsageError(f"{path}: space is {content['space']!r}, expected one of {SPACES}")
    for name in ("points", "boxes"):
        if not isinstance(content.get(name, []), list):
            raise UsageError(f"{path}: {name} is {content[name]!r}, expected a list")
    world = content["space"] == "world"
    found: dict[int, Clicks] = {}
    for i, point in enumerate(content.get("points", [])):
        where = f"{path}: points[{i}]"
        require_keys(where, point, {"at"}, {"label"})
        label = point.get("label", 1)
        if label not in (0, 1):
            raise UsageError(f"{where}: label is {label!r}, expected 1 (on the target) or 0")
        column, row, number = to_slice(where, point["at"], geometry, world)
        clicks = found.get(round(number), NO_CLICKS)
        points = np.concatenate([clicks.points_xy, [[column, row]]]).astype(np.float32)
        labels = np.append(clicks.point_labels, label).astype(np.int32)
        found[round(number)] = Clicks(points, labels, clicks.box)
    for i, box in enumerate(content.get("boxes", [])):
        where = f"{path}: boxes[{i}]"
        require_keys(where, box, {"from", "to"}, set())
        add_box(where, found, [box["from"], box["to"]], geometry, world)
    if not found:
        raise UsageError(f"{path}: holds no points and no boxes; expected {EXAMPLE}")
    return found


def read_box(text: str, geometry: Geometry) -> dict[int, Clicks]:
    """The prompts of `i0,j0,k0,i1,j1,k1`, voxels of two corners. Raises UsageError for another text."""
    try:
        values = [float(x) for x in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 6:
        raise UsageError(f"--box={text}: expected i0,j0,k0,i1,j1,k1, the voxels of two corners")
    found: dict[int, Clicks] = {}
    add_box("--box", found, [values[:3], values[3:]], geometry, False)
    return found


def add_box(
    where: str, found: dict[int, Clicks], corners: list[Any], geometry: Geometry, world: bool
) -> None:
    """Adds a box to all slices that it passes through. Raises UsageError for a second one there."""
    ends = np.sort([to_slice(where, x, geometry, world) for x in corners], axis=0)
    for number in range(round(ends[0, 2]), round(ends[1, 2]) + 1):
        clicks = found.get(number, NO_CLICKS)
        if clicks.box is not None:
            raise UsageError(f"{where}: slice {number} has two boxes, expected one at most")
        found[number] = clicks._replace(box=ends[:, :2].astype(np.float32).reshape(4))


def require_keys(where: Any, content: Any, needed: set[str], allowed: set[str]) -> None:
    keys = set(content) if isinstance(content, dict) else None
    if keys is None or not needed <= keys <= needed | allowed:
        found = sorted(keys) if keys is not None else type(content).__name__
        names = sorted(needed) + [f"{x} (may be left out)" for x in sorted(allowed)]
        raise UsageError(
            f"{where}: got {found}, expected the keys {', '.join(names)}; like {EXAMPLE}"
        )


def to_slice(where: str, at: Any, geometry: Geometry, world: bool) -> np.ndarray:
    """A place to float[3]: column and row of a slice, and its number.

    Raises UsageError for what is no place in the volume.
    """
    try:
        place = np.array(at, float)
    except (TypeError, ValueError):
        place = np.zeros(0)
    if place.shape != (3,) or not np.isfinite(place).all():
        raise UsageError(f"{where}: got {at!r}, expected three numbers")
    affine, shape = np.array(geometry.affine), np.array(geometry.file_shape)
    if world:
        place = np.linalg.solve(affine[:3, :3], place - affine[:3, 3])
    if (place < -0.5).any() or (place >= shape - 0.5).any():
        raise UsageError(
            f"{where}: {list(at)} is the voxel {place.round(1).tolist()}, which lies outside the "
            f"volume of {shape.tolist()} voxels"
        )
    turned = np.zeros(3)
    for axis, (target, direction) in enumerate(to_slices(affine)):
        forward = direction > 0
        turned[int(target)] = place[axis] if forward else shape[axis] - 1 - place[axis]
    return turned
