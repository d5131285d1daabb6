"""Interactive prediction on single slices: encoded once, decoded per click."""

import pathlib
import threading
from typing import Any, NamedTuple, Self

import numpy as np

from usam_jax.data.preprocessing import MIN_SIZE
from usam_jax.data.prompts import BACKGROUND, FOREGROUND, replaced
from usam_jax.predict.model import Clicks, Network, load_network
from usam_jax.utils.errors import DataError, UsageError

ROUNDING = 1e-3  # by which probabilities may lie outside 0 to 1
GREY_RANGE = (-1.0, 2.0)  # Grey values lie in or near [0, 1]; values outside are probably HU.


class EncodedSlice(NamedTuple):
    """An encoded slice, opaque to callers, for any number of predictions."""

    features: Any  # on the device
    shape: tuple[int, int]  # height and width of the slice in pixels
    pixel_mm: tuple[float, float]  # height and width of a pixel in mm


class Predictor:
    """A trained model of single slices for interactive use, safe to share between threads.

    Encoded slices are immutable: keep any number of them, and share them between threads.

        predictor = Predictor.load(workdir)
        encoded = predictor.encode_slice(hu, pixel_mm)
        labels, probabilities = predictor.predict(points_xy, point_labels, box, encoded=encoded)

    `set_image` and `set_slice` store a slice for the calling thread; `predict` uses it by default.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.classes = network.classes
        self.local = threading.local()

    @classmethod
    def load(cls, workdir: str | pathlib.Path) -> Self:
        """Load the best checkpoint of a run.

        Raises WeightsError if there is none, and UsageError if the network needs the neighbours of
        a slice.
        """
        network = load_network(pathlib.Path(workdir))
        network.require_single_slices()
        return cls(network)

    def encode_image(self, image: Any) -> EncodedSlice:
        """Encode a slice [h w] of square pixels: grey in [0, 1], or uint8.

        Raises DataError if the shape is wrong, a value is not finite, or values look like HU.
        """
        grey = np.asarray(image)
        grey = grey.astype(np.float32) / (255 if grey.dtype == np.uint8 else 1)
        check_slice(grey)
        low, high = float(grey.min()), float(grey.max())
        if not GREY_RANGE[0] <= low <= high <= GREY_RANGE[1]:
            raise DataError(
                f"the image has values from {low:g} to {high:g}, expected grey in [0, 1]",
                "give values in HU to set_slice or encode_slice",
            )
        return self._encode(self.network.preparation.from_grey(grey), grey, (1.0, 1.0))

    def encode_slice(self, hu: Any, pixel_mm: tuple[float, float] = (1.0, 1.0)) -> EncodedSlice:
        """Encode an axial CT slice [h w] in HU, with the patient's front at the top.

        `pixel_mm` is the height and width of a pixel in mm. Raises DataError if the shape is wrong
        or a value is not finite.
        """
        values = np.asarray(hu, np.float32)
        check_slice(values)
        return self._encode(self.network.preparation.from_hu(values, pixel_mm), values, pixel_mm)

    def set_image(self, image: Any) -> None:
        """Encode a slice as `encode_image` does, for the calling thread's next predictions."""
        self.local.encoded = self.encode_image(image)

    def set_slice(self, hu: Any, pixel_mm: tuple[float, float] = (1.0, 1.0)) -> None:
        """Encode a slice as `encode_slice` does, for the calling thread's next predictions."""
        self.local.encoded = self.encode_slice(hu, pixel_mm)

    def _encode(
        self, image: np.ndarray, values: np.ndarray, pixel_mm: tuple[float, float]
    ) -> EncodedSlice:
        height, width = values.shape
        return EncodedSlice(self.network.encode(image[None]), (height, width), pixel_mm)

    def predict(
        self,
        points_xy: Any = None,
        point_labels: Any = None,
        box: Any = None,
        *,
        encoded: EncodedSlice | None = None,
        point_classes: Any = None,
        previous: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return labels uint8[h w] and probabilities float32[h w k] on the slice's own pixels.

        `points_xy` [n 2] and `box` [4] (x0, y0, x1, y1) are in pixels of the slice. `point_labels`
        [n] are 1 for foreground and 0 for background, by default all 1. `encoded` is by default the
        slice that the calling thread has set.

        An interactive network takes all clicks on the slice so far: their points, their classes [n]
        in place of `point_labels`, 0 for background, and `previous` float32[h w k], the
        probabilities of the last prediction. Of several on one pixel of the model's input, the last
        counts.

        Raises UsageError if prompts are invalid or outside the slice, if there are any that the
        network does not take, or if no slice was encoded.
        """
        if encoded is None and not hasattr(self.local, "encoded"):
            raise UsageError(
                "predict: got no slice, expected `encoded`, or set_image or set_slice first in "
                "this thread"
            )
        features, shape, pixel_mm = encoded if encoded is not None else self.local.encoded
        if point_classes is not None or previous is not None:
            self.network.require_interactive("predict")
        if point_classes is not None and point_labels is not None:
            raise UsageError(
                "point_labels: got labels and classes of the points, expected point_classes alone, "
                "with 0 for background"
            )
        clicks = make_clicks(points_xy, point_labels, box, shape)
        if self.network.interactive:
            clicks = name_classes(clicks, point_classes, self.classes)
        clicks = clicks._replace(previous=check_previous(previous, shape, len(self.classes)))
        if len(clicks.point_labels) or clicks.box is not None:
            self.network.require_promptable("predict")
        preparation = self.network.preparation
        placed = place_clicks(clicks, self.network, shape, pixel_mm)
        labels, probabilities = self.network.decode(features, [placed])
        return (
            preparation.labels_back(np.asarray(labels[0]), shape, pixel_mm),
            preparation.probabilities_back(np.asarray(probabilities[0]), shape, pixel_mm),
        )


def check_slice(values: np.ndarray) -> None:
    """Raise DataError if `values` is not a finite slice [h w] of MIN_SIZE pixels or more."""
    if values.ndim != 2 or min(values.shape) < MIN_SIZE:
        raise DataError(
            f"the image has the shape {values.shape}, expected [h w] of {MIN_SIZE} pixels or more"
        )
    if not np.isfinite(values).all():
        raise DataError("the image holds NaN or infinite values")


def make_clicks(points_xy: Any, point_labels: Any, box: Any, shape: tuple[int, ...]) -> Clicks:
    """Return prompts in a slice's own pixels. Raises UsageError if one is invalid or outside."""
    try:
        points = np.asarray([] if points_xy is None else points_xy, np.float32)
        points = points.reshape(0, 2) if not points.size else points
    except (TypeError, ValueError) as error:
        raise UsageError(f"points_xy: got {points_xy!r}, expected numbers [n 2]") from error
    if points.ndim != 2 or points.shape[1] != 2:
        raise UsageError(f"points_xy: got the shape {points.shape}, expected [n 2]")
    labels = np.ones(len(points)) if point_labels is None else np.asarray(point_labels)
    if labels.shape != (len(points),) or not np.isin(labels, (0, 1)).all():
        raise UsageError(
            f"point_labels: got {np.asarray(point_labels).tolist()}, expected 1 or 0 for each of "
            f"{len(points)} points"
        )
    corners = None if box is None else np.asarray(box, np.float32).reshape(-1)
    if corners is not None and (corners.shape != (4,) or (corners[:2] > corners[2:]).any()):
        raise UsageError(f"box: got {corners.tolist()}, expected x0, y0, x1, y1 in this order")
    all_xy = points if corners is None else np.concatenate([points, corners.reshape(2, 2)])
    outside = ~((all_xy >= -0.5) & (all_xy <= np.array(shape[::-1]) - 0.5)).all(-1)
    if outside.any():
        height, width = shape
        raise UsageError(
            f"the point (x, y) = {all_xy[outside][0].tolist()} lies outside the image of "
            f"{width} x {height} pixels"
        )
    return Clicks(points, labels.astype(np.int32), corners)


def place_clicks(
    clicks: Clicks, network: Network, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> Clicks:
    """Convert prompts from a slice's own pixels to pixels of the model's input.

    Clicks that name a class lie on whole pixels there, as in training, and of several on one pixel
    the last counts.
    """
    preparation = network.preparation
    corners, previous = None, clicks.previous
    if clicks.box is not None:
        placed = preparation.points_in(clicks.box.reshape(2, 2), shape, pixel_mm)
        corners = np.sort(placed, axis=0).reshape(4)
    if previous is not None:
        previous = preparation.probabilities_in(previous, pixel_mm)
    clicks = clicks._replace(box=corners, previous=previous)
    if clicks.point_classes is None:
        points = preparation.points_in(clicks.points_xy, shape, pixel_mm)
        return clicks._replace(points_xy=points)
    pixels = preparation.pixels_in(clicks.points_xy, shape, pixel_mm)
    kept = ~replaced(pixels)
    return clicks._replace(
        points_xy=pixels[kept].astype(np.float32),
        point_labels=clicks.point_labels[kept],
        point_classes=clicks.point_classes[kept],
    )


def name_classes(clicks: Clicks, point_classes: Any, classes: tuple[str, ...]) -> Clicks:
    """Return clicks with the class of each point.

    Without `point_classes`, background points have class 0, and foreground points are only allowed
    if there is a single foreground class. Raises UsageError for a class that does not exist.
    """
    labels = clicks.point_labels
    if point_classes is None:
        if len(classes) > 2 and labels.any():
            raise UsageError(
                "point_classes: got None, expected the class of each point, since the network is "
                f"interactive: {describe_numbers(classes)}"
            )
        numbers = labels
    else:
        numbers = np.asarray(point_classes, object)
        if numbers.shape != labels.shape or not np.isin(numbers, range(len(classes))).all():
            raise UsageError(
                f"point_classes: got {numbers.tolist()}, expected for each of {len(labels)} points "
                f"one of {describe_numbers(classes)}"
            )
    kinds = np.where(numbers > 0, FOREGROUND, BACKGROUND).astype(np.int32)
    return clicks._replace(point_labels=kinds, point_classes=numbers.astype(np.int32))


def describe_numbers(classes: tuple[str, ...]) -> str:
    """Return the classes with their numbers, as words."""
    return ", ".join(f"{i} ({name})" for i, name in enumerate(classes))


def check_previous(previous: Any, shape: tuple[int, int], num_classes: int) -> np.ndarray | None:
    """Return the previous probabilities as float32[h w k]. Raises UsageError for any other."""
    if previous is None:
        return None
    try:
        array = np.asarray(previous, np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"previous: got {previous!r}, expected probabilities") from error
    expected = (
        f"expected probabilities of the shape {(*shape, num_classes)}, as predict returns them"
    )
    if array.shape != (*shape, num_classes):
        raise UsageError(f"previous: got the shape {array.shape}, {expected}")
    if not ((array >= -ROUNDING) & (array <= 1 + ROUNDING)).all():
        raise UsageError(
            f"previous: got values from {array.min():g} to {array.max():g}, {expected}"
        )
    return array
