"""The state of one slice as an immutable value, and its changes as JSON for the journal."""

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np

UNTOUCHED = 255  # in `edits`: a pixel that no brush has touched

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]


class Prompts(NamedTuple):
    """Points (x, y, class), 0 for background, and a box (x0, y0, x1, y1), in pixels of a slice."""

    points: tuple[Point, ...] = ()
    box: Box | None = None


NO_PROMPTS = Prompts()


class SliceState(NamedTuple):
    """What a user has done to one slice.

    `predicted` is the prediction for `prompts`, `propagated` the one that came from a neighbour,
    and `edits` the brush strokes, UNTOUCHED elsewhere: packed planes uint8[h w], or None.
    """

    prompts: Prompts = NO_PROMPTS
    predicted: bytes | None = None
    propagated: bytes | None = None
    edits: bytes | None = None
    locked: bool = False


EMPTY = SliceState()
PLANES = ("predicted", "propagated", "edits")


def pack(plane: np.ndarray) -> bytes:
    """Compress a plane uint8[h w]."""
    return zlib.compress(np.ascontiguousarray(plane).tobytes(), 1)


def unpack(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Decompress a plane uint8[h w], read-only. Raises ValueError if it has another shape."""
    try:
        return np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
    except zlib.error as error:
        raise ValueError(f"a plane is damaged ({error})") from error


def compose(automatic: np.ndarray, state: SliceState) -> np.ndarray:
    """Return the labels uint8[h w] that are shown: the topmost layer at each pixel."""
    labels = automatic
    base = state.predicted if state.predicted is not None else state.propagated
    if base is not None:
        labels = unpack(base, labels.shape)
    if state.edits is None:
        return labels
    edits = unpack(state.edits, labels.shape)
    return np.where(edits == UNTOUCHED, labels, edits)


def changes_to_json(before: SliceState, after: SliceState) -> dict[str, Any]:
    """Return the fields of `after` that differ from `before`."""
    fields: dict[str, Any] = {}
    if before.prompts != after.prompts:
        fields["points"], fields["box"] = after.prompts.points, after.prompts.box
    for name in PLANES:
        plane = getattr(after, name)
        if plane != getattr(before, name):
            fields[name] = None if plane is None else base64.b64encode(plane).decode()
    if before.locked != after.locked:
        fields["locked"] = after.locked
    return fields


def changes_from_json(
    before: SliceState, fields: dict[str, Any], shape: tuple[int, int]
) -> SliceState:
    """Apply what `changes_to_json` returned.

    Raises KeyError, TypeError or ValueError for anything else.
    """
    changed: dict[str, Any] = {}
    if "points" in fields:
        points = tuple((float(x), float(y), int(c)) for x, y, c in fields["points"])
        box = fields["box"]
        if box is not None:
            x0, y0, x1, y1 = map(float, box)
            box = x0, y0, x1, y1
        changed["prompts"] = Prompts(points, box)
    for name in PLANES:
        if name in fields:
            plane = fields[name]
            changed[name] = None if plane is None else base64.b64decode(plane, validate=True)
            if changed[name] is not None:
                unpack(changed[name], shape)
    if "locked" in fields:
        changed["locked"] = bool(fields["locked"])
    return before._replace(**changed)
