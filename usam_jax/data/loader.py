"""Packed slices to batches on the host, through grain: the same for any number of workers."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.augment import Augment, make_augment
from usam_jax.data.packed.encode import make_clahe
from usam_jax.data.packed.format import Packed, map_array, pack_anew
from usam_jax.data.prompt_modes import PromptMode
from usam_jax.data.prompts import AddPrompts, make_add_prompts
from usam_jax.utils.errors import DataError, UsageError

READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)  # in batches

# What a batch holds: image and label uint8[b h w], index int32[b], and by the prompt setting
# points_xy float32[b p 2], point_labels int32[b p], boxes_xyxy float32[b 4], prompts_given
# bool[b p+1]. In evaluation valid bool[b], and prompts holds those of each mode under its name.
Batch = dict[str, Any]


class Slices:
    """The memory-mapped arrays of a packed split, uint8[n h w].

    A worker process opens them anew: a pickled memory map is a copy of all slices.
    """

    def __init__(self, images: pathlib.Path, labels: pathlib.Path, num_classes: int) -> None:
        self.arguments = images, labels, num_classes
        # Plain arrays: each slice of a np.memmap costs as much as its copy.
        self.images, self.labels = (np.asarray(map_array(x)) for x in (images, labels))

    def __reduce__(self) -> tuple[Any, ...]:
        return Slices, self.arguments

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label of a slice. Raises DataError for labels that no class has."""
        image, label = self.images[row], self.labels[row]
        _, path, num_classes = self.arguments
        if label.max() >= num_classes:  # the loss would take them for background
            raise DataError(
                f"{path}: slice {row} holds the label {label.max()}, expected 0 to "
                f"{num_classes - 1}",
                pack_anew(path),
            )
        return image, label


def open_slices(packed: Packed, split: str) -> Slices:
    num_classes = len(packed.manifest["settings"]["classes"])
    return Slices(packed.path(split, "images"), packed.path(split, "labels"), num_classes)


def stack(elements: list[Batch]) -> Batch:
    """Arrays of single slices, also in nested dicts, to those of a batch."""
    batch: Batch = {}
    for name, first in elements[0].items():
        found = [x[name] for x in elements]
        batch[name] = stack(found) if isinstance(first, dict) else np.stack(found)
    return batch


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Random views of slices with prompts from their labels, drawn from seed, epoch and slice."""

    slices: Slices
    rows: np.ndarray
    steps_per_epoch: int
    seed: int
    augment: Augment
    add_prompts: AddPrompts

    # A whole batch at once: passing slices through grain one by one takes a third of the time.
    def __call__(self, step: int, positions: np.ndarray) -> Batch:
        epoch = step // self.steps_per_epoch
        return stack([self.view(int(row), epoch) for row in self.rows[positions]])

    def view(self, row: int, epoch: int) -> Batch:
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, epoch, row]))
        image, label = self.augment(*self.slices[row], rng)
        return self.add_prompts({"image": image, "label": label, "index": np.int32(row)}, rng)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Slices as they are, with the prompts of each mode; from `num_valid` on marked invalid."""

    slices: Slices
    rows: np.ndarray
    num_valid: int
    clahe_limit: float
    modes: list[PromptMode]

    def __call__(self, positions: np.ndarray) -> Batch:
        clahe = make_clahe(self.clahe_limit)
        num_points = max(mode.num_points for mode in self.modes)
        elements = []
        for position in positions:
            row = int(self.rows[position])
            image, label = self.slices[row]
            element = {
                "image": clahe.apply(image) if clahe else image,
                "label": label,
                "index": np.int32(row),
                "valid": position < self.num_valid,
                "prompts": {mode.name: mode(label, row, num_points) for mode in self.modes},
            }
            elements.append(element)
        return stack(elements)


def row_batches(
    num_rows: int, config: ConfigDict, process: int = 0, num_processes: int = 1
) -> tuple[grain.MapDataset, int]:
    """Positions int[b] in the training rows of each step's batch, and the steps of an epoch.

    Endless, shuffled anew in each epoch; what an incomplete last batch would hold is left out.
    Element i is this process's share of the batch of step i + 1: that batch is the same for any
    number of processes.
    """
    local = config.train.batch_size // num_processes
    usable = num_rows // config.train.batch_size * config.train.batch_size
    if not usable:
        raise UsageError(
            f"config.train.batch_size: found {config.train.batch_size}, but there are only "
            f"{num_rows} slices to train on; expected at most that"
        )
    dataset = grain.MapDataset.range(num_rows).seed(config.seed).shuffle()
    dataset = dataset[:usable][process::num_processes].batch(local, drop_remainder=True).repeat()
    return dataset, usable // config.train.batch_size


def train_batches(
    packed: Packed,
    rows: np.ndarray,
    config: ConfigDict,
    first_step: int = 0,
    process: int = 0,
    num_processes: int = 1,
) -> tuple[grain.DatasetIterator, int]:
    """An endless iterator over this process's training batches after `first_step` steps.

    A batch depends on the seed and the step alone. Gives the steps of an epoch too.
    """
    dataset, steps = row_batches(len(rows), config, process, num_processes)
    make_batch = TrainBatches(
        open_slices(packed, "train"),
        rows,
        steps,
        config.seed,
        make_augment(config.data),
        make_add_prompts(config),
    )
    batches = dataset.map_with_index(make_batch)[first_step:].to_iter_dataset(READ_OPTIONS)
    if config.data.num_workers:
        options = grain.MultiprocessingOptions(num_workers=config.data.num_workers)
        batches = batches.mp_prefetch(options)
    return iter(batches), steps


def eval_batches(
    packed: Packed,
    split: str,
    rows: np.ndarray,
    config: ConfigDict,
    modes: list[PromptMode],
    process: int = 0,
    num_processes: int = 1,
) -> tuple[Iterator[Batch], int]:
    """This process's share of every batch of some rows in order, and the number of batches.

    `split` is that of the packed arrays. All batches have the same shape: the last is filled up
    with repeated slices that `valid` marks as not counting. The prompts of all modes have one shape.
    """
    batch = config.eval.batch_size
    padded = np.resize(rows, math.ceil(len(rows) / batch) * batch)
    make_batch = EvalBatches(
        open_slices(packed, split),
        padded,
        len(rows),
        config.data.clahe_limit if config.data.random_clahe else 0.0,
        modes,
    )
    dataset = (
        grain.MapDataset.range(len(padded))
        .batch(batch // num_processes, drop_remainder=True)[process::num_processes]
        .map(make_batch)
        .to_iter_dataset(READ_OPTIONS)
    )
    return iter(dataset), len(padded) // batch
