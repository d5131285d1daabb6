"""Batches reach the devices in order, each once, ahead of their step if asked."""

import itertools

import numpy as np

from usam_jax.training.feed import Feed
from usam_jax.training.throughput import Meter
from usam_jax.utils.mesh import make_mesh


def test_feed_fetches_one_batch_ahead():
    made = []

    def batches():
        for i in itertools.count():
            made.append(i)
            yield {"index": np.full(2, i, np.int32)}

    feed = Feed(batches(), make_mesh(1), Meter(2))
    taken = [int(feed.take()["index"][0])]
    assert made == [0]  # nothing is read before it is asked for
    feed.fetch()
    feed.fetch()
    assert made == [0, 1]
    taken += [int(feed.take()["index"][0]) for _ in range(2)]
    assert taken == made == [0, 1, 2]
