"""A volume's slices through a trained model, in batches of one shape, to labels on its own voxels."""

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from usam_jax.data.prompts import make_points
from usam_jax.io.geometry import Geometry
from usam_jax.predict.model import NO_CLICKS, Clicks, Network
from usam_jax.predict.predictor import place_clicks

POINTS_PROPAGATED = 3  # of each class, from a slice to its neighbour


class Options(NamedTuple):
    """How a volume is predicted.

    `first` and `last` bound the slices (from the feet up); `flip` averages with the mirrored slice;
    `propagate` takes points from each predicted slice to the next, up and down from those with prompts;
    `keep_largest` keeps the largest connected part of each class.
    """

    batch_size: int = 8
    first: int = 0
    last: int | None = None
    flip: bool = False
    propagate: bool = False
    keep_largest: bool = False


class Predicted(NamedTuple):
    """A slice's number, its classes uint8[h w], and, where asked for, probabilities float32[h w k]."""

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
    """Predicts slices [n h w] in HU; `clicks` are in their own pixels. Slices may come in any order."""
    numbers = range(len(hu))[options.first : None if options.last is None else options.last + 1]
    _, *pixel = geometry.spacing_mm
    pixel_mm, shape = (pixel[0], pixel[1]), (hu.shape[1], hu.shape[2])
    placed = {i: place_clicks(x, network, shape, pixel_mm) for i, x in clicks.items()}

    def prepare(batch: list[int]) -> np.ndarray:
        return np.stack([network.preparation.from_hu(hu[i], pixel_mm) for i in batch])

    predict = propagate_points if options.propagate else predict_batches
    for number, labels, probabilities in predict(network, prepare, placed, list(numbers), options):
        back = network.preparation.labels_back(labels, shape, pixel_mm)
        spread = None
        if with_probabilities:
            found = np.asarray(probabilities)
            spread = network.preparation.probabilities_back(found, shape, pixel_mm)
        yield Predicted(number, back, spread)


# By number the classes uint8[s s] and probabilities float32[s s k] of slices of the model's size.
Raw = Iterator[tuple[int, np.ndarray, np.ndarray]]
Prepare = Callable[[list[int]], np.ndarray]


def predict_batches(
    network: Network,
    prepare: Prepare,
    placed: dict[int, Clicks],
    numbers: list[int],
    options: Options,
) -> Raw:
    """Slices by themselves; the last batch is filled up. One batch is computed while another is read."""
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


def read(batch: list[int], computed: tuple) -> Raw:
    labels, probabilities = np.asarray(computed[0]), computed[1]
    for i, number in enumerate(batch):
        yield number, labels[i], probabilities[i]


def decode(network: Network, images: np.ndarray, clicks: list[Clicks], flip: bool) -> tuple:
    """Classes and probabilities of a batch, with `flip` the mean over both ways round."""
    labels, probabilities = network.decode(network.encode(images), clicks)
    if not flip:
        return labels, probabilities
    size = images.shape[-1]
    mirrored = [mirror(x, size) for x in clicks]
    _, other = network.decode(network.encode(images[..., ::-1]), mirrored)
    mean = (np.asarray(probabilities) + np.asarray(other)[:, :, ::-1]) / 2
    return mean.argmax(-1).astype(np.uint8), mean


def mirror(clicks: Clicks, size: int) -> Clicks:
    """Prompts in a slice of `size` pixels whose columns are reversed."""
    points = clicks.points_xy * np.array([-1, 1], np.float32) + np.array([size - 1, 0], np.float32)
    box = clicks.box
    if box is not None:
        box = np.array([size - 1 - box[2], box[1], size - 1 - box[0], box[3]], np.float32)
    return Clicks(points, clicks.point_labels, box)


def propagate_points(
    network: Network,
    prepare: Prepare,
    placed: dict[int, Clicks],
    numbers: list[int],
    options: Options,
) -> Raw:
    """From each slice with prompts up and down, until nothing is found or the next prompts come.

    A predicted slice's own points, spread over each class, prompt its neighbour. Slices that are not
    reached are not given.
    """
    done: set[int] = set()

    def predict(number: int, clicks: Clicks) -> Generator[tuple, None, np.ndarray]:
        labels, probabilities = decode(network, prepare([number]), [clicks], options.flip)
        found = np.asarray(labels)[0]
        done.add(number)
        yield number, found, probabilities[0]
        return found

    for start in (i for i in numbers if i in placed):
        first = yield from predict(start, placed[start])
        for step in (1, -1):
            number, found = start + step, first
            while found.any() and number in numbers and not (number in done or number in placed):
                found = yield from predict(number, points_of(found, len(network.classes)))
                number += step


def points_of(labels: np.ndarray, num_classes: int) -> Clicks:
    points, kinds = make_points(labels, num_classes, POINTS_PROPAGATED, None)
    return Clicks(points[kinds == 1], kinds[kinds == 1])


def keep_largest(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels uint8[n h w] with the largest connected part (corners connect) of each class alone."""
    kept = np.zeros_like(labels)
    for c, box in enumerate(ndimage.find_objects(labels, num_classes - 1), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == c, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        kept[box][parts == 1 + sizes.argmax()] = c
    return kept
