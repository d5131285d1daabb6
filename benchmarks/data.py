"""Speed of loading, packing and opening slices."""

import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from benchmarks.limits import cpu_seconds
from benchmarks.results import Row
from configs import care
from usam_jax.data import augment, loader, splits
from usam_jax.data.datasets.phantom import load_phantom
from usam_jax.data.packed.encode import make_clahe
from usam_jax.data.packed.prepare import packing_settings, prepare
from usam_jax.utils.files import write_json

NUM_SLICES = 192
EPOCH = 8000  # per slice, grain shuffles thousands, like a data set, faster than a few
ROUNDS = 5
NUM_OPENED = 100_000


def measure_data() -> list[Row]:
    """This loader and the published one, in turn so that other load affects both.

    Best of each.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        config = write_slices(pathlib.Path(folder))
        packed = prepare(config.data)
        paths = sorted(pathlib.Path(config.data.root).glob("train/train_npz/*.npz"))
        rows = np.resize(np.arange(NUM_SLICES), EPOCH)
        batches, _ = loader.train_batches(packed, rows, config)
        published = published_batches(paths, config.train.batch_size)
        rates = [(batch_rate(batches, 100), batch_rate(published, 8)) for _ in range(ROUNDS)]
        packing = max(packing_rate(config, i) for i in range(3))
        opening = min(measure_opening(pathlib.Path(folder) / "large") for _ in range(3))
    ours, theirs = (max(x) for x in zip(*rates, strict=True))
    ratio = float(np.median([a / b for a, b in rates]))
    return [
        ("training slices", ours, "slices/s of one core's time"),
        ("training slices, as the published loader", theirs, "slices/s of one core's time"),
        ("ratio of the two, median of pairs", ratio, "times"),
        ("packing slices from compressed .npz", packing, "slices/s of one core's time"),
        ("packing against the published loader", packing / theirs, "times"),
        (f"opening {NUM_OPENED:,} packed slices to the first batch", opening, "s"),
    ]


def batch_rate(batches: Iterator[dict[str, np.ndarray]], count: int) -> float:
    """Slices per second of this process's CPU time."""
    slices = 0

    def load() -> None:
        nonlocal slices
        for _ in range(count):
            slices += len(next(batches)["image"])

    took = cpu_seconds(load)
    return slices / took


def packing_rate(config: ConfigDict, number: int) -> float:
    """Slices packed into a new folder per second of this process's CPU time."""
    folder = pathlib.Path(config.data.packed_dir) / f"packed_{number}"
    took = cpu_seconds(lambda: prepare(config.data, folder))
    return (NUM_SLICES + 1) / took


def write_slices(folder: pathlib.Path) -> ConfigDict:
    """Write phantoms in CARE's layout, compressed alike.

    Returns the config that packs them.
    """
    config = care.get_config()
    config.data.root, config.data.packed_dir = str(folder / "care"), str(folder / "packed")
    for seed, (split, count) in enumerate((("train", NUM_SLICES), ("test", 1))):
        files = folder / "care" / split / f"{split}_npz"
        files.mkdir(parents=True)
        numbers = range(0, count, 24)
        made = [load_phantom(seed, i, config.data.image_size, min(24, count)) for i in numbers]
        images, labels = (np.concatenate(x).astype(np.float64) for x in zip(*made, strict=True))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            np.savez_compressed(files / f"{i}.npz", image=image, label=label)
    return config


def published_batches(paths: list[pathlib.Path], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches as the published loader makes them, without anything prepared or cached."""
    rng = np.random.default_rng(0)
    while True:
        yield loader.stack([published_slice(x, rng) for x in rng.choice(np.array(paths), size)])


def published_slice(path: pathlib.Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Image, label and points of one file, augmented as published."""
    with np.load(path) as file:
        image, label = (file["image"] * 255).astype(np.uint8), file["label"]
    image = make_clahe(rng.uniform(*augment.RANDOM_CLAHE_LIMITS)).apply(image)
    draw = rng.random()
    if draw < augment.RIGHT_ANGLE_SHARE:
        turns, axis = int(rng.integers(4)), int(rng.integers(2))
        image, label = (np.flip(np.rot90(x, turns), axis).copy() for x in (image, label))
    elif draw < augment.RIGHT_ANGLE_SHARE + augment.ROTATION_SHARE:
        degrees = rng.uniform(-augment.MAX_DEGREES, augment.MAX_DEGREES)
        image, label = (ndimage.rotate(x, degrees, order=0, reshape=False) for x in (image, label))
    points = np.zeros((2, 3, 2), np.float32)
    for c in (1, 2):
        found = np.argwhere(label == c)
        if len(found) >= 3:
            points[c - 1] = rng.permutation(found)[:3]
    return {"image": image.astype(np.float32) / 255, "label": label, "points": points}


def measure_opening(folder: pathlib.Path) -> float:
    """Seconds from the manifest of many cases of one slice, as in CARE, to the first batch."""
    config = care.get_config()
    size = config.data.image_size
    if not folder.is_dir():
        (folder / "arrays").mkdir(parents=True)
        for kind in ("images", "labels"):
            path = folder / "arrays" / f"train_{kind}.npy"
            np.lib.format.open_memmap(path, "w+", np.uint8, (NUM_OPENED, size, size))
        cases = [
            {
                "name": str(i),
                "patient": None,
                "row": i,
                "num_slices": 1,
                "stamp": [f"{i}.npz", 390_000 + i, 10**18 + i],
                "foreground": [1],
                "crc32": [i, 10**9 + i],
                "geometry": None,
            }
            for i in range(NUM_OPENED)
        ]
        manifest = {"settings": packing_settings(config.data), "arrays": "arrays", "held_out": {}}
        manifest |= {"splits": {"train": cases, "test": []}}
        write_json(folder / "manifest.json", manifest)
    start = time.perf_counter()
    config.data.kind, config.data.root = "packed", str(folder)
    packed = prepare(config.data)
    parts = splits.split_subsets(packed, config.data, "val")
    batches, _ = loader.train_batches(packed, parts["train"].rows, config)
    next(batches)
    return time.perf_counter() - start
