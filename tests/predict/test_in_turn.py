"""Clicks in turn: each prediction starts from the one before."""

import types

import numpy as np
import pytest

from usam_jax.predict.in_turn import predict_in_turn, with_previous
from usam_jax.predict.model import NO_CLICKS, Clicks


class Counter:
    """Stands in for a `Predictor`: its prediction counts how often it was predicted before."""

    def __init__(self, interactive=True):
        self.network = types.SimpleNamespace(interactive=interactive)
        self.calls = []

    def encode_slice(self, hu, _pixel_mm):
        return hu

    def predict(
        self, xy=None, labels=None, box=None, encoded=None, point_classes=None, previous=None
    ):
        count = 0 if previous is None else int(previous[0, 0, 0]) + 1
        self.calls.append((list(xy), labels, box, point_classes, count))
        return np.full((2, 2), count, np.uint8), np.full((2, 2, 1), count, np.float32)


POINTS = ((1.0, 2.0, 2), (3.0, 4.0, 0), (5.0, 6.0, 1))


def test_each_click_gets_the_prediction_before_it():
    predictor = Counter()
    labels, _ = predict_in_turn(predictor, None, POINTS, (0.0, 0.0, 1.0, 1.0))
    assert (labels == 3).all() and [x[4] for x in predictor.calls] == [0, 1, 2, 3]
    assert [x[3] for x in predictor.calls] == [[], [2], [2, 0], [2, 0, 1]]
    assert {x[2] for x in predictor.calls} == {(0.0, 0.0, 1.0, 1.0)}


def test_one_more_click_costs_one_prediction():
    predictor, known = Counter(), {}
    predict_in_turn(predictor, None, POINTS[:2], known=known)
    predictor.calls.clear()
    predict_in_turn(predictor, None, POINTS, known=known)
    predict_in_turn(predictor, None, POINTS, known=known)
    assert [x[4] for x in predictor.calls] == [3]
    predict_in_turn(predictor, None, (*POINTS[:1], POINTS[2]), known=known)  # after an undo
    assert len(predictor.calls) == 2 and len(known) <= 4


def test_clicks_start_from_a_given_prediction():
    predictor = Counter()
    start, box = np.full((2, 2, 1), 7.0), (0.0, 0.0, 1.0, 1.0)
    predict_in_turn(predictor, None, POINTS[:2], start=start)
    assert [x[4] for x in predictor.calls] == [8, 9]
    assert [x[3] for x in predictor.calls] == [[2], [2, 0]]  # none without points
    predictor.calls.clear()
    predict_in_turn(predictor, None, POINTS[:1], box, start)
    assert [x[4] for x in predictor.calls] == [8, 9]
    labels, _ = predict_in_turn(predictor, None, (), start=np.eye(3)[np.array([[0, 2]])])
    assert labels.tolist() == [[0, 2]]


def test_published_network_takes_all_points_at_once():
    predictor = Counter(interactive=False)
    predict_in_turn(predictor, None, POINTS)
    assert predictor.calls == [([(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)], [1, 0, 1], None, None, 0)]


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (3, 2)])
def test_last_click_gets_the_prediction_before_it(count, expected):
    xy = np.array([p[:2] for p in POINTS[:count]], np.float32)
    classes = np.array([p[2] for p in POINTS[:count]], np.int32)
    clicks = Clicks(xy, (classes > 0).astype(np.int32), None, classes)
    found = with_previous(Counter(), None, clicks)
    assert (found.previous == expected).all()
    assert with_previous(Counter(), None, NO_CLICKS) is NO_CLICKS
