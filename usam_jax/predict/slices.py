"""Prediction of a volume's slices, in batches of one shape, on the volume's own voxels."""

import functools
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from usam_jax.data.prompts import FOREGROUND, make_points
from usam_jax.data.windows import Windows
from usam_jax.io.geometry import Geometry
from usam_jax.predict.model import NO_CLICKS, Clicks, Network
from usam_jax.predict.predictor import EncodedSlice, place_clicks

POINTS_PROPAGATED = 3  # points per class, from a slice to its neighbour


class Options(NamedTuple):
    """Options of the prediction of a volume.

    `first` and `last` bound the slices, inclusive and counted from the feet up. `flip` averages
    with the mirrored slice. `propagate` prompts each slice with points from its predicted
    neighbour, up and down from the slices with prompts. `keep_largest` keeps the largest connected
    component of each class.
    """

    batch_size: int = 8
    first: int = 0
    last: int | None = None
    flip: bool = False
    propagate: bool = False
    keep_largest: bool = False


class Predicted(NamedTuple):
    """Prediction of one slice: its number, classes uint8[h w] and probabilities.

    `probabilities` is float32[h w k], or None if not requested.
    """

    number: int
    labels: np.ndarray
    probabilities: np.ndarray | None


def predict_slices(
    network: Network,
    hu: np.ndarray,
    geometry: Geometry,
    clicks: dict[int, Clicks],
    options: Options,
    with_probabilities: bool = False,
) -> Iterator[Predicted]:
    """Predict the slices of a volume [n h w] in HU, in any order.

    `clicks` are prompts by slice number, in pixels of the slice. With `options.propagate` only the
    slices that are reached are returned.
    """
    numbers = range(len(hu))[options.first : None if options.last is None else options.last + 1]
    _, *pixel = geometry.spacing_mm
    pixel_mm, shape = (pixel[0], pixel[1]), (hu.shape[1], hu.shape[2])
    placed = {i: place_clicks(x, network, shape, pixel_mm) for i, x in clicks.items()}

    windows = windows_of(network, len(hu))
    prepared = prepare_each(network, hu, pixel_mm)
    if network.dims == 3:
        raw = predict_windows(network, prepared, windows.cover(np.array(numbers)), options)
    else:
        predict = propagate_points if options.propagate else predict_batches
        raw = predict(network, with_neighbours(windows, prepared), placed, list(numbers), options)
    for number, labels, probabilities in raw:
        back = network.preparation.labels_back(labels, shape, pixel_mm)
        spread = None
        if with_probabilities:
            spread = network.preparation.probabilities_back(
                np.asarray(probabilities), shape, pixel_mm
            )
        yield Predicted(number, back, spread)


# Slice number, classes uint8[s s] and probabilities float32[s s k] at the model's size s.
Raw = Iterator[tuple[int, np.ndarray, np.ndarray]]
Prepare = Callable[[list[int]], np.ndarray]


def windows_of(network: Network, num_slices: int) -> Windows:
    """Return the windows of a volume of `num_slices`."""
    return Windows(network.slices, np.zeros(num_slices, int), np.full(num_slices, num_slices))


def prepare_each(
    network: Network, hu: np.ndarray, pixel_mm: tuple[float, float]
) -> Callable[[int], np.ndarray]:
    """Return a function that prepares a slice of a volume [n h w] by its number."""

    @functools.lru_cache(maxsize=2 * network.slices)
    def prepared(number: int) -> np.ndarray:
        return network.preparation.from_hu(hu[number], pixel_mm)

    return prepared


def with_neighbours(windows: Windows, prepared: Callable[[int], np.ndarray]) -> Prepare:
    """Return a function that prepares a batch of slices, with their neighbours as channels."""

    def prepare(batch: list[int]) -> np.ndarray:
        if windows.size == 1:
            return np.stack([prepared(i) for i in batch])
        around = [[prepared(j) for j in windows.around(i).tolist()] for i in batch]
        return np.stack([np.stack(x, axis=-1) for x in around])

    return prepare


def encode_one(
    network: Network, hu: np.ndarray, number: int, pixel_mm: tuple[float, float]
) -> EncodedSlice:
    """Encode a slice of a volume [n h w] as `predict_slices` does, with its neighbours."""
    prepared = prepare_each(network, hu, pixel_mm)
    image = with_neighbours(windows_of(network, len(hu)), prepared)([number])
    return EncodedSlice(network.encode(image), (hu.shape[1], hu.shape[2]), pixel_mm)


def predict_batches(
    network: Network,
    prepare: Prepare,
    placed: dict[int, Clicks],
    numbers: list[int],
    options: Options,
) -> Raw:
    """Predict slices independently, in batches.

    The last batch is padded with its last slice. A batch is computed on the device while the
    previous one is read.
    """
    size = options.batch_size
    waiting: tuple[list[int], tuple] | None = None
    for start in range(0, len(numbers), size):
        batch = numbers[start : start + size]
        filled = batch + batch[-1:] * (size - len(batch))
        images = prepare(batch)
        images = np.concatenate([images, images[-1:].repeat(size - len(batch), 0)])
        computed = decode(network, images, [placed.get(i, NO_CLICKS) for i in filled], options.flip)
        if waiting:
            yield from read(*waiting)
        waiting = batch, computed
    if waiting:
        yield from read(*waiting)


def predict_windows(
    network: Network,
    prepared: Callable[[int], np.ndarray],
    cover: tuple[np.ndarray, np.ndarray],
    options: Options,
) -> Raw:
    """Predict windows of slices, of which `cover` (see `Windows.cover`) says which slices count.

    A batch has as many windows as fit into `options.batch_size` slices, at least one. The last batch
    is padded with its last window.
    """
    size, (rows, counted) = max(1, options.batch_size // network.slices), cover
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        filled = np.concatenate([batch, batch[-1:].repeat(size - len(batch), 0)])
        images = np.stack([np.stack([prepared(i) for i in window]) for window in filled.tolist()])
        labels, probabilities = decode(network, images, [NO_CLICKS] * size, options.flip)
        labels = np.asarray(labels)
        for i, window in enumerate(batch.tolist()):
            for j in np.flatnonzero(counted[start + i]).tolist():
                yield window[j], labels[i, j], probabilities[i, j]


def read(batch: list[int], computed: tuple) -> Raw:
    """Yield the slices of a computed batch, without its padding."""
    labels, probabilities = np.asarray(computed[0]), computed[1]
    for i, number in enumerate(batch):
        yield number, labels[i], probabilities[i]


def decode(network: Network, images: np.ndarray, clicks: list[Clicks], flip: bool) -> tuple:
    """Return classes uint8[b s s] and probabilities float32[b s s k] of images uint8[b s s].

    For windows see `Network.encode` and `Network.decode`. If `flip`, the probabilities are the mean
    with those of the mirrored images.
    """
    labels, probabilities = network.decode(network.encode(images), clicks)
    if not flip:
        return labels, probabilities
    columns = network.dims  # the axis, also of the probabilities
    size = images.shape[columns]
    mirrored = [mirror(x, size) for x in clicks]
    _, other = network.decode(network.encode(np.flip(images, columns)), mirrored)
    mean = (np.asarray(probabilities) + np.flip(np.asarray(other), columns)) / 2
    return mean.argmax(-1).astype(np.uint8), mean


def mirror(clicks: Clicks, size: int) -> Clicks:
    """Return the prompts for the mirror image (columns reversed) of a slice of `size` pixels."""
    points = clicks.points_xy * np.array([-1, 1], np.float32) + np.array([size - 1, 0], np.float32)
    box = clicks.box
    if box is not None:
        box = np.array([size - 1 - box[2], box[1], size - 1 - box[0], box[3]], np.float32)
    previous = clicks.previous
    return clicks._replace(
        points_xy=points, box=box, previous=None if previous is None else previous[:, ::-1]
    )


def propagate_points(
    network: Network,
    prepare: Prepare,
    placed: dict[int, Clicks],
    numbers: list[int],
    options: Options,
) -> Raw:
    """Propagate from each slice with prompts, up and down, until a prediction is empty.

    Points spread over each predicted class prompt the neighbour, for an interactive network with
    their classes and the prediction itself. Propagation also stops at slices with prompts of their
    own and at slices already predicted. Slices that are not reached are not yielded.
    """
    done: set[int] = set()

    def predict(number: int, clicks: Clicks) -> Generator[tuple, None, Clicks | None]:
        """Yield a slice's prediction, and return the prompts for its neighbours, if any."""
        labels, probabilities = decode(network, prepare([number]), [clicks], options.flip)
        classes = np.asarray(labels)[0]
        done.add(number)
        yield number, classes, probabilities[0]
        if not classes.any():
            return None
        return points_of(classes, network, np.asarray(probabilities[0]))

    for start in (i for i in numbers if i in placed):
        first = yield from predict(start, placed[start])
        for step in (1, -1):
            number, clicks = start + step, first
            while clicks and number in numbers and not (number in done or number in placed):
                clicks = yield from predict(number, clicks)
                number += step


def points_of(labels: np.ndarray, network: Network, probabilities: np.ndarray) -> Clicks:
    """Return POINTS_PROPAGATED foreground points of each class in labels uint8[s s].

    For an interactive network they have classes, and `probabilities` float32[s s k] are the
    previous prediction.
    """
    num_classes = len(network.classes)
    if not network.interactive:
        points, kinds = make_points(labels, num_classes, POINTS_PROPAGATED, None)
        return Clicks(points[kinds == FOREGROUND], kinds[kinds == FOREGROUND])
    points, kinds = make_points(labels, num_classes, POINTS_PROPAGATED, None, borrow=False)
    found = kinds == FOREGROUND
    classes = np.repeat(np.arange(1, num_classes), POINTS_PROPAGATED)[found].astype(np.int32)
    return Clicks(points[found], kinds[found], None, classes, probabilities)


def keep_largest(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels uint8[n h w] with only the largest connected component of each class.

    Voxels are connected to all 26 neighbours.
    """
    kept = np.zeros_like(labels)
    for c, box in enumerate(ndimage.find_objects(labels, num_classes - 1), start=1):
        if box is None:
            continue
        components, count = ndimage.label(labels[box] == c, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        kept[box][components == 1 + sizes.argmax()] = c
    return kept
