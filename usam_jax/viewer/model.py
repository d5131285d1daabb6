"""Prediction for the viewer: a loaded model, and its encoded slices of one volume.

Imports JAX; `worker` imports this module only when there is a checkpoint.
"""

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from usam_jax.io.geometry import Geometry
from usam_jax.predict.clicks import read_clicks
from usam_jax.predict.in_turn import Known, Prediction, predict_in_turn
from usam_jax.predict.predictor import EncodedSlice, Predictor
from usam_jax.predict.slices import points_of
from usam_jax.utils import runtime
from usam_jax.viewer.cache import SliceCache
from usam_jax.viewer.case import Case, Model
from usam_jax.viewer.slice_state import NO_PROMPTS, Prompts, SliceState, unpack
from usam_jax.weights.run_checkpoint import best_step
from usam_jax.weights.run_config import require_config

CACHE_BYTES = 512 * 2**20


def describe_checkpoint(workdir: pathlib.Path) -> Model:
    """Read what is known of a checkpoint without loading it.

    Raises WeightsError if there is none.
    """
    saved = require_config(workdir)
    config = ConfigDict(saved)
    return Model(
        classes=tuple(saved["data"]["classes"]),
        name=workdir.resolve().name,
        step=best_step(workdir, config.model),
        window=(float(saved["data"]["window_width"]), float(saved["data"]["window_level"])),
        points_carry_class=bool(saved["model"].get("interactive", False)),
    )


def load_predictor(workdir: pathlib.Path) -> Predictor:
    """Load a checkpoint. Raises WeightsError if it is damaged."""
    runtime.enable_compilation_cache()
    runtime.start_devices()
    return Predictor.load(workdir)


class Encoded:
    """An encoded slice and its latest predictions, all from the same `start`."""

    def __init__(self, encoded: EncodedSlice) -> None:
        self.encoded = encoded
        self.known: Known = {}
        self.start: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        features = sum(x.nbytes for x in jax.tree.leaves(self.encoded.features))
        return features + sum(a.nbytes + b.nbytes for a, b in self.known.values())


class SliceModel:
    """Predicts slices of one case. Not safe to share between threads."""

    def __init__(self, predictor: Predictor, case: Case, cache_bytes: int = CACHE_BYTES) -> None:
        self.predictor, self.case = predictor, case
        self.num_classes = len(predictor.classes)
        self.cache = SliceCache(cache_bytes)

    def encode(self, number: int) -> Encoded:
        """Return a slice encoded, from the cache if it is there."""
        entry: Encoded | None = self.cache.get(number)
        if entry is None:
            hu = self.case.source.hu[number]
            entry = Encoded(self.predictor.encode_slice(hu, self.case.pixel_mm))
            self.cache.put(number, entry, entry.size)
        return entry

    def prepare(self, number: int) -> None:
        """Do ahead what the first click on a slice needs."""
        if self.predictor.network.interactive:
            self.predict(number, NO_PROMPTS, self.case.session.slice_state(number))
        else:
            self.encode(number)

    def predict(self, number: int, prompts: Prompts, state: SliceState) -> np.ndarray:
        """Return labels uint8[h w] for prompts, on top of a propagated mask or the given one."""
        entry = self.encode(number)
        if entry.start != state.propagated:
            entry.start, entry.known = state.propagated, {}
        labels, _ = predict_in_turn(
            self.predictor,
            entry.encoded,
            prompts.points,
            prompts.box,
            self.start(number, state),
            entry.known,
        )
        self.cache.put(number, entry, entry.size)
        return labels

    def replaces(self, prompts: Prompts) -> bool:
        """Whether the last click lies on the same pixel of the model's input as an earlier one."""
        network = self.predictor.network
        if not network.interactive or not prompts.points:
            return False
        xy, shape = np.array([p[:2] for p in prompts.points]), self.case.session.plane_shape
        pixels = network.preparation.pixels_in(xy, shape, self.case.pixel_mm)
        return bool((pixels[:-1] == pixels[-1]).all(1).any())

    def start(self, number: int, state: SliceState) -> np.ndarray | None:
        """Return the labels that clicks improve as probabilities float32[h w k].

        None if they improve the network's own prediction, or if it takes no earlier one.
        """
        session = self.case.session
        if not self.predictor.network.interactive:
            return None
        if state.propagated is not None:
            return self.one_hot(unpack(state.propagated, session.plane_shape))
        return self.one_hot(session.automatic[number]) if self.case.paths.initial else None

    def automatic(self, number: int) -> np.ndarray:
        """Return labels uint8[h w] without prompts."""
        return self.predictor.predict(encoded=self.encode(number).encoded)[0]

    def one_hot(self, labels: np.ndarray) -> np.ndarray:
        """Return labels as probabilities float32[h w k]."""
        return np.eye(self.num_classes, dtype=np.float32)[labels]

    def propagate(self, source: int, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield slice numbers and labels, up and down from the labels shown on `source`.

        Points spread over each class prompt the neighbour, for an interactive network with their
        classes and the previous slice's prediction. Stops in a direction at a slice that is
        locked, edited or prompted, and after a slice without labels.
        """
        session = self.case.session
        for step in (1, -1):
            labels = session.labels_of(source)
            prediction: Prediction = labels, self.one_hot(labels)
            number = source + step
            while first <= number <= last and prediction[0].any():
                if is_protected(session.slice_state(number)):
                    break
                prediction = self.follow(number, prediction)
                yield number, prediction[0]
                number += step

    def follow(self, number: int, neighbour: Prediction) -> Prediction:
        """Return the prediction of a slice from that of its neighbour."""
        interactive = self.predictor.network.interactive
        clicks = points_of(neighbour[0], self.predictor.network, neighbour[1])
        return self.predictor.predict(
            clicks.points_xy,
            None if interactive else clicks.point_labels,
            encoded=self.encode(number).encoded,
            point_classes=clicks.point_classes,
            previous=clicks.previous,
        )


def is_protected(state: SliceState) -> bool:
    """Whether propagation must leave a slice as it is."""
    return (
        state.locked or state.edits is not None or bool(state.prompts.points or state.prompts.box)
    )


def read_points(path: pathlib.Path, geometry: Geometry, model: Model) -> dict[int, Prompts]:
    """Read a points file as prompts by slice. Raises UsageError as `read_clicks` does."""
    classes = model.classes if model.points_carry_class else ()
    found: dict[int, Prompts] = {}
    for number, clicks in read_clicks(path, geometry, classes).items():
        numbers = clicks.point_labels if clicks.point_classes is None else clicks.point_classes
        pairs = zip(clicks.points_xy.tolist(), numbers.tolist(), strict=True)
        box = None if clicks.box is None else tuple(clicks.box.tolist())
        found[number] = Prompts(tuple((x, y, c) for (x, y), c in pairs), box)
    return found
