"""A data set, packed once: uint8 arrays that are memory-mapped, and a manifest beside them.

`PACKED/manifest.json` tells what the arrays in its folder `arrays` hold: `{split}_images.npy` and
`{split}_labels.npy`, uint8[n h w]. Anyone with numpy can read them. The manifest comes last and in
one piece, so arrays that are still being packed are never read; `progress.json` beside those says
how far packing came.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax import logs
from usam_jax.data.case import Case
from usam_jax.data.pack_case import describe_case, pack_case
from usam_jax.data.sources import list_cases
from usam_jax.errors import DISK_FULL, DataError, UsageError, list_some
from usam_jax.files import read_json, write_json

VERSION = 2
SAVE_EVERY_SLICES = 200  # between two notes of how far packing came

Cases = dict[str, list[Case]]
Earlier = dict[tuple[str, str], tuple[pathlib.Path, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed data set, opened: memory-mapped arrays and the manifest's slices by split."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    def images(self, split: str) -> np.ndarray:
        """uint8[n h w]"""
        return self._open(f"{split}_images.npy")

    def labels(self, split: str) -> np.ndarray:
        """uint8[n h w], class indices"""
        return self._open(f"{split}_labels.npy")

    def _open(self, name: str) -> np.ndarray:
        return np.load(self.folder / self.manifest["arrays"] / name, mmap_mode="r")

    def cases(self, split: str) -> list[dict[str, Any]]:
        """Name, patient (or None), number of slices, geometry and checksum of each case."""
        return self.manifest["splits"].get(split, [])

    def slices(self, split: str) -> list[dict[str, Any]]:
        """Name, case, patient and position in the case of each slice, and if it has foreground."""
        return [
            {
                "name": x["name"] if x["num_slices"] == 1 else f"{x['name']}_{i:03d}",
                "case": x["name"],
                "patient": x["patient"],
                "index": i,
                "foreground": bool(x["foreground"][i]),
            }
            for x in self.cases(split)
            for i in range(x["num_slices"])
        ]


def packing_settings(config: ConfigDict) -> dict[str, Any]:
    """What of `config.data` decides the packed bytes, the source files aside.

    Raises UsageError for a value that does not exist.
    """
    if config.intensity not in ("clip", "wrap"):
        raise UsageError(
            f"config.data.intensity: found {config.intensity!r}, expected clip or wrap"
        )
    for field in ("window_width", "clahe_limit"):
        if config[field] < 0 or config.window_width == 0:
            raise UsageError(f"config.data.{field}: found {config[field]}, expected more than 0")
    settings = {
        "version": VERSION,
        "kind": config.kind,
        "classes": list(config.classes),
        "image_size": config.image_size,
        "intensity": config.intensity,
        "window_hu": [config.window_level, config.window_width],
        # A random limit is drawn in training, on slices that are packed without CLAHE.
        "clahe_limit": 0.0 if config.random_clahe else config.clahe_limit,
    }
    if config.kind == "phantom":
        settings["phantom"] = [config.phantom_seed, config.slices_per_patient]
        settings["phantom"] += list(config.num_patients)
    return settings


def prepare(config: ConfigDict) -> Packed:
    """The packed data set of `config.data`, packing what is not packed yet.

    Raises DataError for a source that cannot be used, naming the faulty cases, and UsageError for
    a setting that does not exist.
    """
    cases = list_cases(config)
    settings = packing_settings(config)
    fingerprint = make_fingerprint(cases, settings)
    folder = pathlib.Path(config.packed_dir) / packed_name(config, settings)
    try:
        with locked(folder):
            manifest = read_json(folder / "manifest.json")
            if manifest.get("fingerprint") != fingerprint:
                if manifest:
                    logs.say(f"{folder}: the source has changed, packing what changed")
                manifest = pack(cases, settings, fingerprint, folder)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise DataError(f"{folder}: cannot be written ({error})") from error
        raise DataError(
            f"{folder}: the disk is full ({error}); packing needs "
            f"{bytes_needed(cases, config.image_size) / 1e9:.2f} GB. Free some space and start "
            "again (it goes on where it stopped), or set config.data.packed_dir."
        ) from error
    return Packed(folder, manifest)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time in, so that two runs started together do not pack at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logs.say(f"{folder}: waiting for another process that is packing")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_fingerprint(cases: Cases, settings: dict[str, Any]) -> str:
    """Changes with any setting, any case's name and any source file's size or time."""
    stamps = {split: [[x.name, x.stamp] for x in found] for split, found in cases.items()}
    text = json.dumps([settings, stamps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def packed_name(config: ConfigDict, settings: dict[str, Any]) -> str:
    """A folder name of its own for each source and its settings, so that no two runs share one."""
    root = str(pathlib.Path(config.root).resolve()) if config.root else ""
    digest = hashlib.sha256(json.dumps([root, settings]).encode()).hexdigest()[:8]
    return "_".join([config.kind, *([pathlib.Path(root).name] if root else []), digest])


def count_slices(cases: list[Case]) -> int:
    return sum(case.num_slices for case in cases)


def bytes_needed(cases: Cases, size: int) -> int:
    return 2 * size * size * sum(count_slices(found) for found in cases.values())


def pack(
    cases: Cases, settings: dict[str, Any], fingerprint: str, folder: pathlib.Path
) -> dict[str, Any]:
    """Packs every case; what an earlier packing, whole or stopped, has of a case is copied."""
    arrays = folder / fingerprint[:12]
    arrays.mkdir(exist_ok=True)
    earlier = find_earlier(folder)
    done = read_json(arrays / "progress.json") or {split: {} for split in cases}
    problems: list[str] = []
    for split, found in cases.items():
        if found:
            problems += pack_split(found, split, settings, done, arrays, earlier)
    if problems:
        raise DataError(
            f"{len(problems)} cases cannot be used:\n{list_some(problems)}\n"
            "Mend or remove them and start again; the other cases are not packed a second time."
        )
    splits = {x: [done[x][case.name] for case in found] for x, found in cases.items()}
    manifest = {"fingerprint": fingerprint, "settings": settings}
    manifest |= {"arrays": arrays.name, "splits": splits}
    write_json(folder / "manifest.json", manifest)
    for path in folder.iterdir():
        if path.is_dir() and path != arrays:
            shutil.rmtree(path)
    return manifest


def find_earlier(folder: pathlib.Path) -> Earlier:
    """Where each case is packed already, by split and name: its arrays' folder and its record."""
    found: Earlier = {}
    for progress in folder.glob("*/progress.json"):
        for split, records in read_json(progress).items():
            found |= {(split, name): (progress.parent, x) for name, x in records.items()}
    return found


def pack_split(
    cases: list[Case],
    split: str,
    settings: dict[str, Any],
    all_done: dict[str, dict[str, Any]],
    folder: pathlib.Path,
    earlier: Earlier,
) -> list[str]:
    """Packs the cases of a split that are not done; returns what is wrong with the others.

    Threads suffice to keep all cores busy: reading, unpacking and OpenCV release Python's lock.
    """
    size, done = settings["image_size"], all_done[split]
    shape = (count_slices(cases), size, size)
    images = open_array(folder / f"{split}_images.npy", shape, bool(done))
    labels = open_array(folder / f"{split}_labels.npy", shape, bool(done))
    starts = np.cumsum([0, *(case.num_slices for case in cases)]).tolist()

    def pack_number(number: int) -> dict[str, Any] | str:
        case, row = cases[number], starts[number]
        try:
            packed = copy_case(case, split, earlier) or pack_case(case, settings)
        except DataError as error:
            return str(error)
        images[row : starts[number + 1]], labels[row : starts[number + 1]] = packed
        return {"row": row, **describe_case(case, *packed)}

    problems: list[str] = []
    unsaved = 0
    todo = [number for number, case in enumerate(cases) if case.name not in done]
    with logs.Progress(f"packing {split}", len(cases), "cases", len(done)) as bar:
        for number, result in in_order(pack_number, todo):
            bar.advance()
            if isinstance(result, str):
                problems.append(result)
            else:
                done[cases[number].name] = result
                unsaved += cases[number].num_slices
            if unsaved >= SAVE_EVERY_SLICES or number == todo[-1]:
                unsaved = 0
                images.flush()
                labels.flush()
                write_json(folder / "progress.json", all_done)
    return problems


def copy_case(case: Case, split: str, earlier: Earlier) -> tuple[np.ndarray, np.ndarray] | None:
    """The packed images and labels of a case that has not changed since an earlier packing."""
    folder, record = earlier.get((split, case.name), (None, {}))
    if folder is None or record["stamp"] != case.stamp:
        return None
    rows = slice(record["row"], record["row"] + case.num_slices)
    names = (f"{split}_images.npy", f"{split}_labels.npy")
    images, labels = (np.array(np.load(folder / x, mmap_mode="r")[rows]) for x in names)
    return images, labels


def in_order(function: Any, numbers: list[int]) -> Iterator[tuple[int, Any]]:
    """Calls `function` on all cores, a few cases ahead, and gives the results in order."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(numbers), 4 * workers):
                some = numbers[start : start + 4 * workers]
                yield from zip(some, pool.map(function, some), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def open_array(path: pathlib.Path, shape: tuple[int, ...], begun: bool) -> np.memmap:
    """The array that is being packed, anew unless `begun`, with its disk space taken at once."""
    mode = "r+" if begun else "w+"
    array = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        # A write into a hole of a full disk would kill the process instead of raising an error.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
