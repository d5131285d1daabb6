"""Clicks of an interactive network in turn, each with the prediction before it."""

from typing import Any

import numpy as np

from usam_jax.predict.model import Clicks
from usam_jax.predict.predictor import EncodedSlice, Predictor

MAX_KNOWN = 4  # predictions kept per slice: enough to continue after an undo

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]
Prediction = tuple[np.ndarray, np.ndarray]  # labels uint8[h w], probabilities float32[h w k]
Known = dict[tuple[tuple[Point, ...], Box | None], Prediction]


def predict_in_turn(
    predictor: Predictor,
    encoded: EncodedSlice,
    points: tuple[Point, ...],
    box: Box | None = None,
    start: np.ndarray | None = None,
    known: Known | None = None,
) -> Prediction:
    """Return the prediction for points (x, y, class) and a box, in pixels of the slice.

    An interactive network first predicts without points, and then once more for each point, with
    all points up to it and the last prediction, as it was trained. The probabilities `start`
    float32[h w k] stand for the first prediction; with a box they are what it starts from. Any
    other network takes all points at once, every class above 0 as foreground. `known` holds earlier
    predictions of the slice for the same `start` and gets the new ones, so that one more click
    costs one prediction.
    """
    if not predictor.network.interactive:
        return predictor.predict(
            [p[:2] for p in points], [int(p[2] > 0) for p in points], box, encoded=encoded
        )
    known = {} if known is None else known
    if start is not None and box is None:
        known[(), None] = start.argmax(-1).astype(np.uint8), start
    first = next((n for n in range(len(points), -1, -1) if (points[:n], box) in known), -1)
    found = known[points[:first], box] if first >= 0 else None
    for n in range(first + 1, len(points) + 1):
        previous = start if found is None else found[1]
        given = points[:n]
        found = predictor.predict(
            [p[:2] for p in given],
            None,
            box,
            encoded=encoded,
            point_classes=[p[2] for p in given],
            previous=previous,
        )
        known[given, box] = found
        while len(known) > MAX_KNOWN:
            known.pop(next(iter(known)))
    assert found is not None
    return found


def with_previous(predictor: Predictor, encoded: EncodedSlice, clicks: Clicks) -> Clicks:
    """Return the clicks of a slice with the prediction before the last of them.

    Predicting with them then equals `predict_in_turn`. Clicks without points stay as they are.
    """
    if clicks.point_classes is None or not len(clicks.point_classes):
        return clicks
    xy, classes = clicks.points_xy.tolist(), clicks.point_classes.tolist()
    points = tuple((x, y, c) for (x, y), c in zip(xy, classes, strict=True))
    box: Any = None if clicks.box is None else tuple(clicks.box.tolist())
    _, probabilities = predict_in_turn(predictor, encoded, points[:-1], box)
    return clicks._replace(previous=probabilities)
