"""A data set, packed once: uint8 arrays that are memory-mapped, and a manifest beside them.

`PACKED/manifest.json` tells what the arrays hold: `{split}_images.npy` and `{split}_labels.npy`,
uint8[n h w]. Anyone with numpy can read them. Until packing has ended, the arrays bear the ending
`.partial` and `progress.json` says how far it came.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from usam_jax import logs
from usam_jax.data.sources import SPLITS, Case, list_cases
from usam_jax.errors import DISK_FULL, DataError, list_some
from usam_jax.files import read_json, write_json

VERSION = 1
CLAHE_TILES = (8, 8)
SAVE_EVERY = 200  # cases between two notes of how far packing came


@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed data set, opened: memory-mapped arrays and the manifest's slices by split."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    def images(self, split: str) -> np.ndarray:
        """uint8[n h w]"""
        return np.load(self.folder / f"{split}_images.npy", mmap_mode="r")

    def labels(self, split: str) -> np.ndarray:
        """uint8[n h w], class indices"""
        return np.load(self.folder / f"{split}_labels.npy", mmap_mode="r")

    def slices(self, split: str) -> list[dict[str, Any]]:
        """Name, case, patient (or None) and position in the case of each slice."""
        return self.manifest["splits"][split]


def packing_settings(config: ConfigDict) -> dict[str, Any]:
    """What of `config.data` decides the packed bytes."""
    settings = {
        "version": VERSION,
        "kind": config.kind,
        "classes": list(config.classes),
        "image_size": config.image_size,
        "intensity": config.intensity,
        # A random limit is drawn in training, on slices that are packed without CLAHE.
        "clahe_limit": 0.0 if config.random_clahe else config.clahe_limit,
    }
    return settings


def prepare(config: ConfigDict) -> Packed:
    """The packed data set of `config.data`, packing it first where that is not done yet.

    Raises DataError for a source that cannot be used: every faulty case is named.
    """
    cases = list_cases(config)
    settings = packing_settings(config)
    stamps = {split: [case.stamp for case in cases[split]] for split in SPLITS}
    text = json.dumps([settings, stamps], sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    folder = pathlib.Path(config.packed_dir) / packed_name(config)
    manifest = read_json(folder / "manifest.json")
    if manifest.get("fingerprint") != fingerprint:
        if manifest:
            logs.say(f"{folder}: the source or a setting has changed, packing anew")
        try:
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


def packed_name(config: ConfigDict) -> str:
    """A folder name of its own for each source, so that two data sets never share one."""
    if config.kind == "phantom":
        return f"phantom_{config.image_size}"
    root = pathlib.Path(config.root).resolve()
    return f"{config.kind}_{root.name}_{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


def bytes_needed(cases: dict[str, list[Case]], size: int) -> int:
    return 2 * size * size * sum(case.num_slices for split in SPLITS for case in cases[split])


def pack(
    cases: dict[str, list[Case]], settings: dict[str, Any], fingerprint: str, folder: pathlib.Path
) -> dict[str, Any]:
    """Packs every case, going on where an earlier packing of the same source stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = read_json(folder / "progress.json")
    if progress.get("fingerprint") != fingerprint:
        progress = {"fingerprint": fingerprint, "done": dict.fromkeys(SPLITS, 0)}
        for path in folder.glob("*.partial"):
            path.unlink()
    (folder / "manifest.json").unlink(missing_ok=True)
    problems: list[str] = []
    for split in SPLITS:
        problems += pack_split(cases[split], split, settings, progress, folder)
    if problems:
        raise DataError(
            f"{len(problems)} cases cannot be used:\n{list_some(problems)}\n"
            "Mend or remove them and start again; what is packed already is kept."
        )
    manifest = {
        "fingerprint": fingerprint,
        "settings": settings,
        "splits": {split: describe_slices(cases[split]) for split in SPLITS},
    }
    for path in folder.glob("*.partial"):
        os.replace(path, path.with_suffix(""))
    write_json(folder / "manifest.json", manifest)
    (folder / "progress.json").unlink(missing_ok=True)
    return manifest


def describe_slices(cases: list[Case]) -> list[dict[str, Any]]:
    return [
        {
            "name": case.name if case.num_slices == 1 else f"{case.name}_{index:03d}",
            "case": case.name,
            "patient": case.patient,
            "index": index,
        }
        for case in cases
        for index in range(case.num_slices)
    ]


def pack_split(
    cases: list[Case],
    split: str,
    settings: dict[str, Any],
    progress: dict[str, Any],
    folder: pathlib.Path,
) -> list[str]:
    """Packs the cases of a split that are not done; returns what is wrong with the others."""
    size = settings["image_size"]
    shape = (sum(case.num_slices for case in cases), size, size)
    images = open_partial(folder / f"{split}_images.npy.partial", shape)
    labels = open_partial(folder / f"{split}_labels.npy.partial", shape)
    clahe = make_clahe(settings["clahe_limit"])
    done: int = progress["done"][split]
    row = sum(case.num_slices for case in cases[:done])
    problems: list[str] = []
    with logs.Progress(f"packing {split}", len(cases), "cases", done) as bar:
        for number, case in enumerate(cases[done:], start=done + 1):
            rows = slice(row, row + case.num_slices)
            row += case.num_slices
            try:
                grey, label = case.load_fn()
                images[rows] = [pack_image(x, size, settings["intensity"], clahe) for x in grey]
                labels[rows] = [resize(x, size, cv2.INTER_NEAREST) for x in label]
            except DataError as error:
                problems.append(str(error))
            bar.advance()
            # After a fault nothing more is noted as done, so that the case is read again.
            if not problems and (number % SAVE_EVERY == 0 or number == len(cases)):
                images.flush()
                labels.flush()
                progress["done"][split] = number
                write_json(folder / "progress.json", progress)
    return problems


def open_partial(path: pathlib.Path, shape: tuple[int, ...]) -> np.memmap:
    """The array that is being packed, with its disk space taken at once."""
    mode = "r+" if path.is_file() else "w+"
    array = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        # A write into a hole of a full disk would kill the process instead of raising an error.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def make_clahe(limit: float) -> Any:
    return cv2.createCLAHE(clipLimit=limit, tileGridSize=CLAHE_TILES) if limit else None


def pack_image(grey: np.ndarray, size: int, intensity: str, clahe: Any) -> np.ndarray:
    """Grey float[h w] in [0, 1] to uint8[size size], contrast-limited equalised if asked.

    "clip" bounds values outside [0, 1]; "wrap" lets them overflow as the published code did.
    """
    if intensity == "clip":
        grey = np.clip(grey, 0.0, 1.0)
    image = (grey * 255).astype(np.int64).astype(np.uint8)
    image = resize(image, size, cv2.INTER_AREA if size < image.shape[0] else cv2.INTER_LINEAR)
    return clahe.apply(image) if clahe else image


def resize(image: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    if image.shape == (size, size):
        return image
    return cv2.resize(image, (size, size), interpolation=interpolation)
