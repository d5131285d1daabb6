"""Checks of what the page sends. Nothing in a request is trusted, and none of it is a path."""

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from usam_jax.viewer.points import snap
from usam_jax.viewer.slice_state import Box, Prompts

MAX_POINTS = 500


class BadRequest(Exception):
    """A request that the page would not send."""


def read_object(body: bytes, needed: set[str]) -> dict[str, Any]:
    """Return a JSON object with exactly the keys `needed`."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("body: got no JSON") from error
    if not isinstance(content, dict) or content.keys() != needed:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise BadRequest(f"body: got {got}, expected the keys {sorted(needed)}")
    return content


def integer(name: str, value: Any, end: int) -> int:
    """Return an integer from 0 to `end` - 1."""
    if type(value) is not int or not 0 <= value < end:
        raise BadRequest(f"{name}: got {str(value)[:40]}, expected an integer from 0 to {end - 1}")
    return value


def index(name: str, text: str, end: int) -> int:
    """Return an integer from 0 to `end` - 1 that is a part of an address."""
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise BadRequest(f"{name}: got {text[:40]!r}, expected an integer from 0 to {end - 1}")
    return integer(name, int(text), end)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of `choices`."""
    if value not in choices:
        raise BadRequest(f"{name}: got {str(value)[:40]!r}, expected one of {', '.join(choices)}")
    return str(value)


def coordinate(name: str, value: Any, size: int) -> float:
    """Return a coordinate inside a slice of `size` pixels."""
    is_number = type(value) in (int, float) and math.isfinite(value)
    if not is_number or not -0.5 <= value <= size - 0.5:
        raise BadRequest(f"{name}: got {str(value)[:40]}, expected a number in the slice")
    return snap(value)


def numbers(name: str, value: Any, count: int) -> list[Any]:
    """Return a list of `count` values."""
    if not isinstance(value, list) or len(value) != count:
        raise BadRequest(f"{name}: got {str(value)[:40]}, expected a list of {count} numbers")
    return value


def prompts(points: Any, box: Any, shape: tuple[int, int], num_classes: int) -> Prompts:
    """Return points [x, y, class] and a box [x0, y0, x1, y1] or None of a slice [h w]."""
    if not isinstance(points, list) or len(points) > MAX_POINTS:
        raise BadRequest(f"points: expected a list of at most {MAX_POINTS} points")
    h, w = shape
    found = []
    for given in points:
        x, y, c = numbers("points", given, 3)
        c = integer("class", c, num_classes)
        found.append((coordinate("x", x, w), coordinate("y", y, h), c))
    return Prompts(tuple(found), None if box is None else corners(box, shape))


def corners(box: Any, shape: tuple[int, int]) -> Box:
    """Return a box whose first corner is the smaller one."""
    h, w = shape
    x0, y0, x1, y1 = numbers("box", box, 4)
    xs, ys = (
        (coordinate("box", x, w) for x in (x0, x1)),
        (coordinate("box", y, h) for y in (y0, y1)),
    )
    (left, right), (top, bottom) = sorted(xs), sorted(ys)
    return left, top, right, bottom


def stroke(body: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Return the JSON and the mask bool[h w] of a stroke: uint32 length, JSON, uint8 mask."""
    if len(body) < 4:
        raise BadRequest("body: got fewer than 4 bytes, expected a length")
    (length,) = struct.unpack_from("<I", body)
    if length > len(body) - 4:
        raise BadRequest(f"body: got a JSON of {length} bytes in {len(body)}")
    content = read_object(body[4 : 4 + length], {"slice", "box", "label"})
    x, y, w, h = numbers("box", content["box"], 4)
    for value in (x, y, w, h):
        integer("box", value, 2**16)
    pixels = np.frombuffer(body, np.uint8, offset=4 + length)
    if not w or not h or pixels.size != w * h:
        raise BadRequest(f"mask: got {pixels.size} pixels, expected {w} x {h}")
    content["box"] = x, y
    return content, pixels.reshape(h, w) > 0
