"""Clicks: what training with them costs, and how many a volume needs."""

import itertools
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.results import Row
from benchmarks.training import make_batch
from configs import phantom
from usam_jax.data.packed.prepare import prepare
from usam_jax.evaluation.robot_user import next_click
from usam_jax.predict.model import NO_CLICKS, Clicks, Network, load_network
from usam_jax.predict.slices import points_of
from usam_jax.training import loop
from usam_jax.utils import console
from usam_jax.utils.mesh import make_mesh, shard_batch

ROUNDS = (1, 3, 5, 8)
STEPS = 8
TARGET, MAX_CLICKS = 0.85, 100  # Dice of a volume, clicks on it
IN_TURN = (1, 3)  # clicks on one slice, before its mask is propagated


def measure_rounds() -> list[Row]:
    """Training step of the demo's network without clicks, and with more and more rounds of them."""
    plain = phantom.get_config()
    plain.model.interactive, plain.prompts.kind = False, "none"
    results = [("training step without clicks, the demo's network", step_seconds(plain), "s")]
    for rounds in ROUNDS:
        config = phantom.get_config()
        config.prompts.rounds = rounds
        name = f"training step with {rounds} clicks, the demo's network"
        results.append((name, step_seconds(config), "s"))
    return results


def step_seconds(config: ConfigDict) -> float:
    """Return the median time of a training step."""
    mesh = make_mesh(1)
    training = loop.make_training(config, 100, mesh)
    state, batch = training.start_fn(), shard_batch(make_batch(config), mesh)
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        state, values = training.train_step(state, batch)
        jax.block_until_ready((state, values))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))  # the first one compiles


def measure_volume_clicks(workdir: str) -> list[Row]:
    """Clicks until the mean Dice of a whole test volume reaches 85 %, by an interactive run.

    A robot user gives one or three clicks to the slice with the most wrong pixels, each on its
    largest error. They change that slice alone, or its mask is then propagated.
    """
    network = load_network(pathlib.Path(workdir))
    network.require_interactive(workdir)
    packed = prepare(ConfigDict(network.config).data)
    images, labels = packed.images("test"), packed.labels("test")
    cases = np.array([record["case"] for record in packed.slices("test")])
    modes = list(itertools.product(IN_TURN, (False, True)))
    counts: list[list[int]] = [[] for _ in modes]
    with console.Progress("clicks", len(packed.cases("test")), "volumes") as bar:
        for case in np.unique(cases):
            rows = np.flatnonzero(cases == case)
            volume = Volume(network, images[rows], labels[rows])
            for mode, of_mode in zip(modes, counts, strict=True):
                of_mode.append(volume.count(*mode))
            bar.advance()
    results = []
    for (in_turn, propagates), of_mode in zip(modes, counts, strict=True):
        name = f"{in_turn} on a slice{', then propagated' * propagates}"
        results += [
            (f"clicks until a volume's Dice is 85 %, {name}", float(np.mean(of_mode)), "clicks"),
            (f"the same, median, {name}", float(np.median(of_mode)), "clicks"),
        ]
    return results


class Volume:
    """A test volume at the size of the network, with the clicks on it so far.

    `images` and `labels` are uint8[n s s].
    """

    def __init__(self, network: Network, images: np.ndarray, labels: np.ndarray) -> None:
        self.network, self.labels = network, labels
        self.features = [network.encode(x[None]) for x in images]
        self.predicted = np.zeros_like(labels)
        self.probabilities: list[np.ndarray] = [np.zeros(0)] * len(images)
        for i in range(len(images)):
            self.predict(i, NO_CLICKS)
        self.automatic = self.predicted.copy(), list(self.probabilities)
        self.forget_clicks()

    def forget_clicks(self) -> None:
        """Go back to the automatic prediction."""
        self.predicted, self.probabilities = self.automatic[0].copy(), list(self.automatic[1])
        none = NO_CLICKS._replace(point_classes=np.zeros(0, np.int32))
        self.clicks = [none] * len(self.labels)

    def predict(self, i: int, clicks: Clicks) -> None:
        labels, probabilities = self.network.decode(self.features[i], [clicks])
        self.predicted[i] = np.asarray(labels)[0]
        self.probabilities[i] = np.asarray(probabilities)[0]

    def dice(self) -> float:
        """Return the mean over the classes that the volume has."""
        found = []
        for c in np.unique(self.labels[self.labels > 0]):
            truth, mask = self.labels == c, self.predicted == c
            found.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
        return float(np.mean(found))

    def count(self, in_turn: int, propagates: bool) -> int:
        """Return the number of clicks until `TARGET` is reached, at most `MAX_CLICKS`."""
        self.forget_clicks()
        for done in range(MAX_CLICKS):
            if self.dice() >= TARGET:
                return done
            if not done % in_turn:
                worst = int((self.predicted != self.labels).sum((1, 2)).argmax())
            self.click(worst)
            if propagates and not (done + 1) % in_turn:
                self.propagate(worst)
        return MAX_CLICKS

    def click(self, i: int) -> None:
        """Click on the largest error of slice i, if it has any."""
        before, classes = self.clicks[i], self.clicks[i].point_classes
        earlier = before.points_xy.astype(int).tolist()
        click = next_click(self.predicted[i], self.labels[i], earlier)
        if click is None:
            return
        assert classes is not None
        self.clicks[i] = Clicks(
            np.concatenate([before.points_xy, np.array([click.xy], np.float32)]),
            np.append(before.point_labels, np.int32(click.label > 0)),
            None,
            np.append(classes, np.int32(click.label)),
        )
        self.predict(i, self.clicks[i]._replace(previous=self.probabilities[i]))

    def propagate(self, i: int) -> None:
        """Propagate the mask of slice i, as `usam_jax.predict.slices` does."""
        for step in (1, -1):
            j = i + step
            while 0 <= j < len(self.labels) and not len(self.clicks[j].point_labels):
                source = self.predicted[j - step]
                if not source.any():
                    break
                self.predict(j, points_of(source, self.network, self.probabilities[j - step]))
                j += step
