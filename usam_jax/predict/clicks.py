"""Points and boxes of a volume, converted to prompts of its slices.

A points file is JSON: `{"space": "voxel", "points": [{"at": [i, j, k], "label": 1}], "boxes":
[{"from": [i, j, k], "to": [i, j, k]}]}`. `voxel` coordinates are indices along the file's own
axes, from 0; `world` coordinates are in mm along right, front and head (RAS), as in NIfTI. A label
is 1 on the target and 0 outside it. For an interactive network, each point on the target names its
class: `{"at": [i, j, k], "class": "tumour"}`.
"""

import pathlib
from typing import Any

import numpy as np

from usam_jax.io.geometry import Geometry, to_slices
from usam_jax.predict.model import NO_CLICKS, TRAIN_INTERACTIVE, Clicks
from usam_jax.utils.errors import DataError, UsageError
from usam_jax.utils.files import load_json

SPACES = ("voxel", "world")
EXAMPLE = (
    '{"space": "voxel", "points": [{"at": [120, 140, 33], "label": 1}], '
    '"boxes": [{"from": [90, 110, 30], "to": [150, 170, 36]}]}'
)


def read_clicks(
    path: pathlib.Path, geometry: Geometry, classes: tuple[str, ...] = ()
) -> dict[int, Clicks]:
    """Return the prompts of a points file by slice, in pixels (x, y) of the slices.

    `classes` are the names of the classes of an interactive network, for which each point on the
    target names its class; any other network takes none.

    Raises UsageError if a key is unknown, a value is not a point, or a point is outside the volume.
    """
    try:
        content = load_json(path)
    except DataError as error:
        raise UsageError(f"{error}; expected {EXAMPLE}") from error
    require_keys(path, content, {"space"}, {"points", "boxes"})
    if content["space"] not in SPACES:
        raise UsageError(f"{path}: space is {content['space']!r}, expected one of {SPACES}")
    for name in ("points", "boxes"):
        if not isinstance(content.get(name, []), list):
            raise UsageError(f"{path}: {name} is {content[name]!r}, expected a list")
    world = content["space"] == "world"
    by_slice: dict[int, Clicks] = {}
    for i, point in enumerate(content.get("points", [])):
        where = f"{path}: points[{i}]"
        require_keys(where, point, {"at"}, {"label", "class"})
        label = point.get("label", 1)
        if label not in (0, 1):
            raise UsageError(f"{where}: label is {label!r}, expected 1 (on the target) or 0")
        number_of_class = read_class(where, point, classes)
        column, row, number = to_slice(where, point["at"], geometry, world)
        clicks = by_slice.get(round(number), NO_CLICKS)
        label = int(number_of_class > 0) if classes else label
        points = np.concatenate([clicks.points_xy, [[column, row]]]).astype(np.float32)
        labels = np.append(clicks.point_labels, label).astype(np.int32)
        by_slice[round(number)] = clicks._replace(points_xy=points, point_labels=labels)
        if classes:
            before = clicks.point_classes if clicks.point_classes is not None else np.zeros(0)
            numbers = np.append(before, number_of_class).astype(np.int32)
            by_slice[round(number)] = by_slice[round(number)]._replace(point_classes=numbers)
    for i, box in enumerate(content.get("boxes", [])):
        where = f"{path}: boxes[{i}]"
        require_keys(where, box, {"from", "to"}, set())
        add_box(where, by_slice, [box["from"], box["to"]], geometry, world)
    if not by_slice:
        raise UsageError(f"{path}: holds no points and no boxes; expected {EXAMPLE}")
    return by_slice


def read_class(where: str, point: dict[str, Any], classes: tuple[str, ...]) -> int:
    """Return the number of the class of a point of a points file, 0 for one outside the target.

    Raises UsageError if an interactive network's class is missing, does not exist or contradicts
    the point's label, and if any other network is given a class.
    """
    name, label = point.get("class"), point.get("label", 1)
    if not classes:
        if name is not None:
            raise UsageError(
                f"{where}: got the class {name!r}, expected none: the network was trained without the "
                f"interactive extension. {TRAIN_INTERACTIVE}"
            )
        return 0
    if name is None and label == 0:
        return 0
    if name not in classes:
        raise UsageError(
            f'{where}: got the class {name!r}, expected "class" with one of {", ".join(classes)}'
        )
    number = classes.index(name)
    if "label" in point and (number > 0) != (label == 1):
        raise UsageError(
            f"{where}: got the class {name!r} and label {label}, expected label 1 for a class of the "
            f"target and 0 for {classes[0]}"
        )
    return number


def read_box(text: str, geometry: Geometry) -> dict[int, Clicks]:
    """Return the prompts by slice of `i0,j0,k0,i1,j1,k1`, two corners in voxels.

    Raises UsageError if the text is not six numbers or a corner is outside the volume.
    """
    try:
        values = [float(x) for x in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 6:
        raise UsageError(f"--box: got {text}, expected i0,j0,k0,i1,j1,k1, two corners in voxels")
    by_slice: dict[int, Clicks] = {}
    add_box("--box", by_slice, [values[:3], values[3:]], geometry, False)
    return by_slice


def add_box(
    where: str, by_slice: dict[int, Clicks], corners: list[Any], geometry: Geometry, world: bool
) -> None:
    """Add a box to `by_slice` for each slice between its corners.

    Raises UsageError if a slice has a box already.
    """
    ends = np.sort([to_slice(where, x, geometry, world) for x in corners], axis=0)
    for number in range(round(ends[0, 2]), round(ends[1, 2]) + 1):
        clicks = by_slice.get(number, NO_CLICKS)
        if clicks.box is not None:
            raise UsageError(f"{where}: got a second box for slice {number}, expected one at most")
        by_slice[number] = clicks._replace(box=ends[:, :2].astype(np.float32).reshape(4))


def require_keys(where: Any, content: Any, needed: set[str], allowed: set[str]) -> None:
    """Raise UsageError if `content` is not a dict of the `needed` and some `allowed` keys."""
    keys = set(content) if isinstance(content, dict) else None
    if keys is None or not needed <= keys <= needed | allowed:
        got = sorted(keys) if keys is not None else type(content).__name__
        names = sorted(needed) + [f"{x} (optional)" for x in sorted(allowed)]
        raise UsageError(
            f"{where}: got {got}, expected the keys {', '.join(names)}. Example: {EXAMPLE}"
        )


def to_slice(where: str, at: Any, geometry: Geometry, world: bool) -> np.ndarray:
    """Convert a point [3] to float64[3]: column and row in a slice, and the slice's number.

    `at` is in voxels of the file or, if `world`, in mm (RAS). Raises UsageError if it is not a
    point in the volume.
    """
    try:
        point = np.array(at, float)
    except (TypeError, ValueError, OverflowError):
        point = np.zeros(0)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise UsageError(f"{where}: got {at!r}, expected three numbers")
    affine, shape = np.array(geometry.affine), np.array(geometry.file_shape)
    if world:
        with np.errstate(all="ignore"):  # coordinates near the largest float overflow to NaN
            point = np.linalg.solve(affine[:3, :3], point - affine[:3, 3])
    if not ((point >= -0.5) & (point < shape - 0.5)).all():
        raise UsageError(
            f"{where}: {list(at)} is the voxel {[round(x, 1) for x in point.tolist()]}, which lies outside the "
            f"volume of {shape.tolist()} voxels"
        )
    turned = np.zeros(3)
    for axis, (target, direction) in enumerate(to_slices(affine)):
        forward = direction > 0
        turned[int(target)] = point[axis] if forward else shape[axis] - 1 - point[axis]
    return turned
