"""Batches of packed slices on the host, the same for any number of grain workers."""

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
from usam_jax.data.packed.format import Packed, map_array, repack_advice
from usam_jax.data.prompt_modes import PromptMode
from usam_jax.data.prompts import AddPrompts, make_add_prompts
from usam_jax.data.windows import Windows, make_windows
from usam_jax.utils.errors import DataError, UsageError

READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)  # in batches

# A batch holds image and label uint8[b h w], index int32[b] and, depending on the prompts,
# points_xy float32[b p 2], point_labels int32[b p], boxes_xyxy float32[b 4] and prompts_given
# bool[b p+1]. In evaluation it holds valid bool[b], and in `prompts` the prompts of each mode by
# its name. With windows of s slices, image is uint8[b h w s], and label is that of the middle slice.
# For networks of windows, image and label are uint8[b s h w], and index and valid are [b s].
Batch = dict[str, Any]

IGNORED = 255  # label of a slice that only fills a window, in training


class Slices:
    """The memory-mapped arrays of a packed split, uint8[n h w].

    A worker process opens them itself: a pickled memory map would be a copy of all slices.
    """

    def __init__(self, images: pathlib.Path, labels: pathlib.Path, num_classes: int) -> None:
        self.arguments = images, labels, num_classes
        # Plain arrays: indexing a np.memmap costs as much as copying the slice.
        self.images, self.labels = (np.asarray(map_array(x)) for x in (images, labels))

    def __reduce__(self) -> tuple[Any, ...]:
        return Slices, self.arguments

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label of a slice. Raises DataError if a label has no class."""
        image, label = self.images[row], self.labels[row]
        _, path, num_classes = self.arguments
        if label.max() >= num_classes:  # the loss would treat them as background
            raise DataError(
                f"{path}: slice {row} holds the label {label.max()}, expected 0 to "
                f"{num_classes - 1}",
                repack_advice(path),
            )
        return image, label


def open_slices(packed: Packed, split: str) -> Slices:
    """The slices of a packed split."""
    num_classes = len(packed.manifest["settings"]["classes"])
    return Slices(packed.path(split, "images"), packed.path(split, "labels"), num_classes)


def stack(elements: list[Batch]) -> Batch:
    """Stacks the arrays of single slices, also in nested dicts, into those of a batch."""
    batch: Batch = {}
    for name, first in elements[0].items():
        found = [x[name] for x in elements]
        batch[name] = stack(found) if isinstance(first, dict) else np.stack(found)
    return batch


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Makes training batches: augmented slices with prompts, drawn from seed, epoch and slice.

    With `dims` 3 it makes windows near those that start at `rows`.
    """

    slices: Slices
    windows: Windows
    rows: np.ndarray
    steps_per_epoch: int
    seed: int
    augment: Augment
    add_prompts: AddPrompts
    dims: int

    # A whole batch per call: passing slices through grain one by one took a third of the time.
    def __call__(self, step: int, positions: np.ndarray) -> Batch:
        epoch = step // self.steps_per_epoch
        view = self.window_view if self.dims == 3 else self.view
        return stack([view(int(row), epoch) for row in self.rows[positions]])

    def make_rng(self, row: int, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, epoch, row]))

    def view(self, row: int, epoch: int) -> Batch:
        """The augmented slice of a row in an epoch, its neighbours as channels, with prompts."""
        rng = self.make_rng(row, epoch)
        image, label = self.slices[row]
        view = self.augment.draw(label.shape[0], rng)
        if self.windows.size == 1:
            image = view.image(image)
        else:
            around = self.windows.around(row)
            image = np.stack([view.image(x) for x in self.slices.images[around]], axis=-1)
        element = {"image": image, "label": view.label(label), "index": np.int32(row)}
        return self.add_prompts(element, rng)

    def window_view(self, start: int, epoch: int) -> Batch:
        """The augmented window near `start` in an epoch: one view of all its slices."""
        rng = self.make_rng(start, epoch)
        rows, inside = self.windows.drawn(start, rng)
        found = [self.slices[row] for row in rows.tolist()]
        view = self.augment.draw(found[0][1].shape[0], rng)
        labels = np.stack([view.label(label) for _, label in found])
        labels[~inside] = IGNORED
        images = np.stack([view.image(image) for image, _ in found])
        return {"image": images, "label": labels, "index": rows.astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Makes evaluation batches: slices with the prompts of each mode, or for `dims` 3 windows.

    `valid` says which of the `rows` count: int[n], or int[n s] for windows.
    """

    slices: Slices
    windows: Windows
    rows: np.ndarray
    valid: np.ndarray
    clahe_limit: float
    modes: list[PromptMode]
    dims: int

    def __call__(self, positions: np.ndarray) -> Batch:
        make = self.window_element if self.dims == 3 else self.element
        return stack([make(int(x)) for x in positions])

    def image(self, row: int) -> np.ndarray:
        clahe, image = make_clahe(self.clahe_limit), self.slices[row][0]
        return clahe.apply(image) if clahe else image

    def element(self, position: int) -> Batch:
        row = int(self.rows[position])
        label = self.slices[row][1]
        image = self.image(row)
        if self.windows.size > 1:
            around = self.windows.around(row).tolist()
            image = np.stack([self.image(x) for x in around], axis=-1)
        num_points = max(mode.num_points for mode in self.modes)
        return {
            "image": image,
            "label": label,
            "index": np.int32(row),
            "valid": self.valid[position],
            "prompts": {mode.name: mode(label, row, num_points) for mode in self.modes},
        }

    def window_element(self, position: int) -> Batch:
        rows = self.rows[position]
        return {
            "image": np.stack([self.image(x) for x in rows.tolist()]),
            "label": np.stack([self.slices[x][1] for x in rows.tolist()]),
            "index": rows.astype(np.int32),
            "valid": self.valid[position],
            "prompts": {mode.name: {} for mode in self.modes},  # such networks take none
        }


def row_batches(
    num_rows: int, config: ConfigDict, process: int = 0, num_processes: int = 1
) -> tuple[grain.MapDataset, int]:
    """Positions int[b] in the training rows for each step, and the number of steps per epoch.

    The sequence is endless and reshuffled in each epoch, without an incomplete last batch. Element
    i is this process's share of the batch of step i + 1, which is the same for any number of
    processes. Raises UsageError if there is not a single complete batch.
    """
    local = config.train.batch_size // num_processes
    usable = num_rows // config.train.batch_size * config.train.batch_size
    if not usable:
        raise UsageError(
            f"config.train.batch_size: got {config.train.batch_size}, but there are only "
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
    dims: int = 2,
) -> tuple[grain.DatasetIterator, int]:
    """This process's batches after `first_step`, endlessly, and the steps per epoch.

    `rows` are those of `windows.training_rows`, and `dims` is that of the network. A batch depends on
    the seed and the step alone.
    """
    dataset, steps = row_batches(len(rows), config, process, num_processes)
    make_batch = TrainBatches(
        open_slices(packed, "train"),
        make_windows(packed, "train", config.data.slices),
        rows,
        steps,
        config.seed,
        make_augment(config.data),
        make_add_prompts(config),
        dims,
    )
    batches = dataset.map_with_index(make_batch)[first_step:].to_iter_dataset(READ_OPTIONS)
    if config.data.num_workers:
        options = grain.MultiprocessingOptions(num_workers=config.data.num_workers)
        batches = batches.mp_prefetch(options)
    return iter(batches), steps


def eval_rows(
    packed: Packed, split: str, rows: np.ndarray, config: ConfigDict, dims: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all evaluation batches, int[m], and which of them count, bool[m].

    The last batch is filled up with repeated rows that do not count. For `dims` 3 they are the rows
    of windows, int[m s]; those that count are `rows`, each once and in order.
    """
    found, counted = rows, np.ones(len(rows), bool)
    if dims == 3:
        found, counted = make_windows(packed, split, config.data.slices).cover(rows)
    batch = config.eval.batch_size
    size = math.ceil(len(found) / batch) * batch
    valid = np.zeros((size, *counted.shape[1:]), bool)
    valid[: len(found)] = counted
    return np.resize(found, (size, *found.shape[1:])), valid


def eval_batches(
    packed: Packed,
    split: str,
    rows: np.ndarray,
    config: ConfigDict,
    modes: list[PromptMode],
    process: int = 0,
    num_processes: int = 1,
    dims: int = 2,
) -> tuple[Iterator[Batch], int]:
    """An iterator over this process's share of the batches of `rows`, and the number of batches.

    `split` is the split of the packed arrays. All batches have the same shape: the last is padded
    with repeated slices that `valid` marks. The prompts of all modes have the same shape.
    """
    batch = config.eval.batch_size
    padded, valid = eval_rows(packed, split, rows, config, dims)
    make_batch = EvalBatches(
        open_slices(packed, split),
        make_windows(packed, split, config.data.slices),
        padded,
        valid,
        config.data.clahe_limit if config.data.random_clahe else 0.0,
        modes,
        dims,
    )
    dataset = (
        grain.MapDataset.range(len(padded))
        .batch(batch // num_processes, drop_remainder=True)[process::num_processes]
        .map(make_batch)
        .to_iter_dataset(READ_OPTIONS)
    )
    return iter(dataset), len(padded) // batch
