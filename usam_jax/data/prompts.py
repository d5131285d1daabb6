"""Point and box prompts from a label map: random in training, fixed in evaluation."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax.utils.errors import UsageError

FOREGROUND, BACKGROUND, PADDING = 1, 0, -1
KINDS = ("none", "points", "box", "points_box", "mixed", "interactive")
ORDERS = ("xy", "rowcol")

# points_xy float32[p 2] in pixels, and point_labels int32[p]
Points = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class AddPrompts:
    """Adds prompts to a slice, from its (augmented) label. Fields as in `config.prompts`."""

    kind: str
    points_per_class: int
    negative_points: int
    box_jitter: float
    order: str
    num_classes: int
    with_classes: bool = False  # for an interactive network: each point names its class

    def __call__(self, element: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        """Add points_xy, point_labels, boxes_xyxy and prompts_given, as `kind` requires.

        Adds `point_classes` int32[p] too if points name their class. Without `rng` the prompts are
        those of evaluation.
        """
        label = element["label"]
        kind = self.kind if rng is not None else eval_kind(self.kind)
        mixed, interactive = kind == "mixed", kind == "interactive"
        given = rng.random(2) < 0.5 if mixed and rng is not None else np.ones(2, bool)
        kind = "points_box" if mixed or interactive else kind
        if "points" in kind:
            inside = make_points(
                label, self.num_classes, self.points_per_class, rng, borrow=not self.with_classes
            )
            outside = make_background_points(label, self.negative_points, rng)
            points, labels = (np.concatenate(x) for x in zip(inside, outside, strict=True))
            element["points_xy"] = points[:, ::-1].copy() if self.order == "rowcol" else points
            element["point_labels"] = labels
            if self.with_classes:
                classes = np.repeat(np.arange(1, self.num_classes), self.points_per_class)
                classes = np.pad(classes, (0, self.negative_points))
                element["point_classes"] = classes.astype(np.int32)
        if "box" in kind:
            box = make_box(label)
            if self.box_jitter and rng is not None:
                box = jitter_box(box, self.box_jitter, label.shape, rng)
            element["boxes_xyxy"] = box
        if mixed:  # no prompt, points, box and both are equally frequent
            element["prompts_given"] = np.repeat(given, [len(element["point_labels"]), 1])
        if interactive and rng is not None:
            element["prompts_given"] = self.draw_first_prompts(rng)
        return element

    def draw_first_prompts(self, rng: np.random.Generator) -> np.ndarray:
        """Draw which points and, last, whether the box count at the start, bool[p+1].

        Half of the slices start without prompts, a quarter with 1 to `points_per_class` points of
        each class, a quarter with a box.
        """
        start = rng.random()
        count = rng.integers(1, self.points_per_class, endpoint=True) if start < 0.25 else 0
        of_class = np.arange(self.points_per_class) < count
        inside = np.tile(of_class, self.num_classes - 1)
        outside = np.full(self.negative_points, start < 0.25)
        return np.concatenate([inside, outside, [0.25 <= start < 0.5]])


def replaced(pixels: np.ndarray) -> np.ndarray:
    """Return for each of the pixels [n 2] whether a later one equals it, bool[n]."""
    last = {tuple(xy): i for i, xy in enumerate(pixels.tolist())}
    return ~np.isin(np.arange(len(pixels)), list(last.values()))


def make_add_prompts(config: ConfigDict) -> AddPrompts:
    """The prompts of `config.prompts`. Raises UsageError for an invalid field."""
    prompts = config.prompts

    def check(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.prompts.{field}: got {prompts[field]!r}, expected {expected}")

    check(prompts.kind in KINDS, "kind", f"one of {KINDS}")
    check(prompts.order in ORDERS, "order", f"one of {ORDERS}")
    check(prompts.points_per_class >= 1, "points_per_class", "1 or more")
    check(prompts.negative_points >= 0, "negative_points", "0 or more")
    check(prompts.box_jitter >= 0, "box_jitter", "0 or more pixels")
    check(1 <= prompts.rounds <= 8, "rounds", "1 to 8 simulated clicks")
    interactive = config.model.get("interactive", False)
    names_classes = interactive or prompts.kind == "interactive"
    check(prompts.order == "xy" or not names_classes, "order", "xy for an interactive network")
    return AddPrompts(
        kind=prompts.kind,
        points_per_class=prompts.points_per_class,
        negative_points=prompts.negative_points,
        box_jitter=prompts.box_jitter,
        order=prompts.order,
        num_classes=config.model.num_classes,
        with_classes=interactive,
    )


def eval_kind(kind: str) -> str:
    """The kind of prompts in the evaluation of a model trained with `kind`."""
    return "points" if kind in ("mixed", "interactive") else kind


def make_points(
    label: np.ndarray,
    num_classes: int,
    per_class: int,
    rng: np.random.Generator | None,
    borrow: bool = True,
) -> Points:
    """Points of each foreground class in turn, (num_classes - 1) * per_class in all.

    All are labelled FOREGROUND: the label says that a point is foreground, not which class. The
    points of an absent class are those of the next present class, or padding without `borrow`. A class with fewer pixels than
    `per_class` gives one point per pixel; the rest is padding, as is every point of a slice without
    foreground. Without `rng` the points are spread evenly over the pixels of the class in row-major
    order.
    """
    pixels = np.flatnonzero(label != 0)  # of bool: ten times as fast as of uint8
    values = label.ravel()[pixels]
    of_class = {c: pixels[values == c] for c in range(1, num_classes)}
    chosen = {c: choose(found, per_class, rng) for c, found in of_class.items() if found.size}
    points = np.zeros((num_classes - 1, per_class, 2), np.float32)
    labels = np.full((num_classes - 1, per_class), PADDING, np.int32)
    present = sorted(chosen)
    for c in (of_class if borrow else chosen) if present else ():
        flat = chosen[next((p for p in present if p >= c), present[0])]
        points[c - 1, : flat.size] = to_xy(flat, label.shape[1])
        labels[c - 1, : flat.size] = FOREGROUND
    return points.reshape(-1, 2), labels.reshape(-1)


def empty_prompts(batch_size: int, num_points: int) -> dict[str, np.ndarray]:
    """Return the prompts of a batch with room for `num_points`, none of which is given.

    They are `points_xy` float32[b p 2], `point_labels` int32[b p], `boxes_xyxy` float32[b 4] and
    `prompts_given` bool[b p+1], which has the box last.
    """
    return {
        "points_xy": np.zeros((batch_size, num_points, 2), np.float32),
        "point_labels": np.full((batch_size, num_points), PADDING, np.int32),
        "boxes_xyxy": np.zeros((batch_size, 4), np.float32),
        "prompts_given": np.zeros((batch_size, num_points + 1), bool),
    }


def make_background_points(
    label: np.ndarray, count: int, rng: np.random.Generator | None
) -> Points:
    """`count` different points on the background, chosen as those of a class are."""
    points = np.zeros((count, 2), np.float32)
    labels = np.full(count, PADDING, np.int32)
    if count:
        flat = choose(np.flatnonzero(label == 0), count, rng)
        points[: flat.size] = to_xy(flat, label.shape[1])
        labels[: flat.size] = BACKGROUND
    return points, labels


def to_xy(flat: np.ndarray, width: int) -> np.ndarray:
    """Indices int[n] into a flattened slice as (x, y) int[n 2]."""
    return np.stack([flat % width, flat // width], axis=-1)


def choose(pixels: np.ndarray, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """At most `count` different elements of `pixels`, evenly spaced without `rng`."""
    count = min(count, pixels.size)
    if rng is None:
        return pixels[((np.arange(count) + 0.5) * pixels.size / count).astype(np.int64)]
    return pixels[rng.choice(pixels.size, count, replace=False, shuffle=False)]


def make_box(label: np.ndarray) -> np.ndarray:
    """The box (x0, y0, x1, y1) float32[4] of all foreground, including its outermost pixels.

    For a slice without foreground it is the whole image, since SAM has no padding for boxes.
    """
    rows, columns = np.flatnonzero(label.any(1)), np.flatnonzero(label.any(0))
    if not rows.size:
        return np.array([0, 0, label.shape[1] - 1, label.shape[0] - 1], np.float32)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def jitter_box(
    box: np.ndarray, pixels: float, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Move each side of `box` by up to `pixels`, clipped to the slice and sorted."""
    corners = (box + rng.uniform(-pixels, pixels, 4)).reshape(2, 2)
    inside = np.clip(corners, 0, [shape[1] - 1, shape[0] - 1])
    return np.sort(inside, axis=0).reshape(4).astype(np.float32)
