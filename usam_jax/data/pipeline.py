"""Packed slices to batches on the host, through grain: the same for any number of workers."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from usam_jax.data import prompts as prompts_lib
from usam_jax.data.augment import augment, random_clahe
from usam_jax.data.pack_case import make_clahe
from usam_jax.data.prepare import Packed
from usam_jax.errors import UsageError

READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)  # in batches

# What a batch holds: image and label uint8[b h w], index int32[b], and by the prompt setting
# points_xy float32[b p 2], point_labels int32[b p], boxes_xyxy float32[b 4]; in evaluation
# valid bool[b].
Batch = dict[str, np.ndarray]


class SliceSource:
    """Random access to some rows of a packed split."""

    def __init__(self, packed: Packed, split: str, rows: np.ndarray) -> None:
        self.packed, self.split, self.rows = packed, split, rows

    # A worker process gets the path and opens the arrays anew: a pickled memory map is a copy.
    def __getstate__(self) -> dict[str, Any]:
        return {"packed": self.packed, "split": self.split, "rows": self.rows}

    @functools.cached_property
    def images(self) -> np.ndarray:
        return self.packed.images(self.split)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return self.packed.labels(self.split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        image, label = np.array(self.images[row]), np.array(self.labels[row])
        return {"image": image, "label": label, "index": np.int32(row)}

    def __repr__(self) -> str:  # grain keeps it in its checkpoints
        return f"SliceSource({self.split}, {len(self.rows)} slices)"


@dataclasses.dataclass(frozen=True)
class AddPrompts:
    """Adds the prompts that `config.prompts` asks for, from the label as it is now."""

    kind: str
    per_class: int
    order: str
    num_classes: int

    def __call__(self, element: Batch, rng: np.random.Generator | None) -> Batch:
        label = element["label"]
        if "points" in self.kind:
            points, labels = prompts_lib.make_points(label, self.num_classes, self.per_class, rng)
            element["points_xy"] = points[:, ::-1].copy() if self.order == "rowcol" else points
            element["point_labels"] = labels
        if "box" in self.kind:
            element["boxes_xyxy"] = prompts_lib.make_box(label)
        return element


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random view of a slice, then prompts from its labels."""

    augment: bool
    random_clahe: bool
    add_prompts: AddPrompts

    def __call__(self, element: Batch, rng: np.random.Generator) -> Batch:
        image, label = element["image"], element["label"]
        if self.random_clahe:
            image = random_clahe(image, rng)
        if self.augment:
            image, label = augment(image, label, rng)
        return self.add_prompts({**element, "image": image, "label": label}, rng)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """The slice as it is, with fixed prompts; rows past the end are marked invalid."""

    num_valid: int
    clahe_limit: float
    add_prompts: AddPrompts

    def __call__(self, position: int, element: Batch) -> Batch:
        if self.clahe_limit:
            element["image"] = make_clahe(self.clahe_limit).apply(element["image"])
        element["valid"] = np.array(position < self.num_valid)
        return self.add_prompts(element, None)


def make_add_prompts(config: ConfigDict) -> AddPrompts:
    prompts = config.prompts
    kinds, orders = ("none", "points", "box", "points_box"), ("xy", "rowcol")
    if prompts.kind not in kinds:
        raise UsageError(f"config.prompts.kind: found {prompts.kind!r}, expected one of {kinds}")
    if prompts.order not in orders:
        raise UsageError(f"config.prompts.order: found {prompts.order!r}, expected one of {orders}")
    if "points" in prompts.kind and prompts.points_per_class < 1:
        raise UsageError("config.prompts.points_per_class: expected 1 or more with kind=points")
    return AddPrompts(
        prompts.kind, prompts.points_per_class, prompts.order, config.model.num_classes
    )


def train_batches(
    packed: Packed, rows: np.ndarray, config: ConfigDict, process: int = 0, num_processes: int = 1
) -> tuple[grain.DatasetIterator, int]:
    """An endless iterator over shuffled batches of this process, and the steps of an epoch.

    Its state is kept in checkpoints. An incomplete last batch of an epoch is dropped.
    """
    local = config.train.batch_size // num_processes
    usable = len(rows) // num_processes * num_processes
    steps = usable // num_processes // local
    if steps == 0:
        raise UsageError(
            f"config.train.batch_size: found {config.train.batch_size}, but there are only "
            f"{len(rows)} slices to train on in {packed.folder}; expected at most that"
        )
    source = SliceSource(packed, "train", rows)
    transform = TrainTransform(
        config.data.augment, config.data.random_clahe, make_add_prompts(config)
    )
    dataset = (
        grain.MapDataset.source(source)
        .seed(config.seed)
        .shuffle()[:usable][process::num_processes]
        .random_map(transform)
        .batch(local, drop_remainder=True)
        .repeat()
        .to_iter_dataset(READ_OPTIONS)
    )
    if config.data.num_workers:
        options = grain.MultiprocessingOptions(num_workers=config.data.num_workers)
        dataset = dataset.mp_prefetch(options)
    return iter(dataset), steps


def eval_batches(
    packed: Packed,
    split: str,
    rows: np.ndarray,
    config: ConfigDict,
    process: int = 0,
    num_processes: int = 1,
) -> tuple[Iterator[Batch], int]:
    """This process's share of every batch of some rows in order, and the number of batches.

    `split` is that of the packed arrays. All batches have the same shape: the last is filled up
    with repeated slices that `valid` marks as not counting.
    """
    batch = config.eval.batch_size
    padded = np.resize(rows, math.ceil(len(rows) / batch) * batch)
    source = SliceSource(packed, split, padded)
    clahe_limit = config.data.clahe_limit if config.data.random_clahe else 0.0
    transform = EvalTransform(len(rows), clahe_limit, make_add_prompts(config))
    dataset = (
        grain.MapDataset.source(source)
        .map_with_index(transform)
        .batch(batch // num_processes, drop_remainder=True)[process::num_processes]
        .to_iter_dataset(READ_OPTIONS)
    )
    return iter(dataset), len(padded) // batch
