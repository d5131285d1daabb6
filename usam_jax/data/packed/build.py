"""Packs cases into the arrays of a packed data set, on all cores and resumably."""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from usam_jax.data.case import Case, Cases
from usam_jax.data.packed.encode import checksums, describe_case, is_unchanged, pack_slices
from usam_jax.data.packed.format import MANIFEST, map_array, record_doubts, record_values
from usam_jax.data.values import GreyValues, describe_doubts, measure, unusable_splits
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, list_some
from usam_jax.utils.files import read_json, write_json
from usam_jax.utils.parallel import ordered_map

PROGRESS = "progress.json"
SAVE_EVERY_SLICES = 200  # between two writes of the progress file
CHECK = (
    "python -m tools.prepare SOURCE --check lists all faults; fix or remove those cases and start "
    "again (nothing is packed twice)."
)

# Images and labels uint8[n size size], and the grey values before.
PackedCase = tuple[np.ndarray, np.ndarray, GreyValues]
Earlier = dict[tuple[str, str], tuple[pathlib.Path, dict[str, Any]]]


def hash_json(content: Any) -> str:
    """SHA-256 of content that JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def count_slices(cases: list[Case]) -> int:
    """The number of slices of all cases."""
    return sum(case.num_slices for case in cases)


def pack(cases: Cases, settings: dict[str, Any], name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Pack every case into the folder `name`, and return the manifest.

    Unchanged cases are copied from earlier packings, even interrupted ones.
    """
    arrays = folder / name
    arrays.mkdir(exist_ok=True)
    earlier = find_earlier(folder, settings)
    done = read_json(arrays / PROGRESS).get("splits") or {split: {} for split in cases}
    problems: list[str] = []
    for split, found in cases.items():
        if found:
            problems += pack_split(found, split, settings, done, arrays, earlier)
    if problems:
        raise DataError(f"{len(problems)} cases cannot be used:\n{list_some(problems)}\n{CHECK}")
    splits = {x: [done[x][case.name] for case in listed] for x, listed in cases.items()}
    require_usable_values(splits)
    manifest = {
        "fingerprint": make_fingerprint(splits, settings),
        "settings": settings,
        "arrays": arrays.name,
        "held_out": {},
        "splits": splits,
    }
    write_json(folder / MANIFEST, manifest)
    for progress in folder.glob(f"*/{PROGRESS}"):
        if progress.parent != arrays:
            shutil.rmtree(progress.parent)
    return manifest


def make_fingerprint(splits: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> str:
    """A hash of the settings, and of the name, the patient and the source of each case.

    A source counts by the content of its files, so a copy with other times is the same.
    """
    sources = {
        split: [[x["name"], x["patient"], x["digests"] or x["stamp"]] for x in records]
        for split, records in splits.items()
    }
    return hash_json([settings, sources])


def require_usable_values(splits: dict[str, list[dict[str, Any]]]) -> None:
    """Raise DataError if packing left too little of the grey values of most cases of a split."""
    values = {x: list(filter(None, map(record_values, found))) for x, found in splits.items()}
    if unusable := unusable_splits(values):
        doubts = record_doubts({split: splits[split] for split in unusable})
        raise DataError(f"{', '.join(unusable)}: {describe_doubts(doubts)}")


def find_earlier(folder: pathlib.Path, settings: dict[str, Any]) -> Earlier:
    """Cases that are packed already, by split and name: the folder of the arrays and the record."""
    found: Earlier = {}
    for path in folder.glob(f"*/{PROGRESS}"):
        progress = read_json(path)
        if progress["settings"] != settings:
            continue
        for split, records in progress["splits"].items():
            found |= {(split, name): (path.parent, x) for name, x in records.items()}
    return found


def pack_split(
    cases: list[Case],
    split: str,
    settings: dict[str, Any],
    all_done: dict[str, dict[str, Any]],
    folder: pathlib.Path,
    earlier: Earlier,
) -> list[str]:
    """Pack the cases of a split that are not done yet, and return the problems of unusable one

    Threads suffice to keep all cores busy: reading, decompression and OpenCV release the GIL.
    """
    size, done = settings["image_size"], all_done[split]
    shape = (count_slices(cases), size, size)
    images = open_array(folder / f"{split}_images.npy", shape, bool(done))
    labels = open_array(folder / f"{split}_labels.npy", shape, bool(done))
    starts = np.cumsum([0, *(case.num_slices for case in cases)]).tolist()

    def pack_number(number: int) -> dict[str, Any] | str:
        case, row = cases[number], starts[number]
        try:
            packed = copy_case(case, split, earlier) or read_and_pack(case, settings)
        except DataError as error:
            return str(error)
        images[row : starts[number + 1]], labels[row : starts[number + 1]] = packed[:2]
        return {"row": row, **describe_case(case, *packed)}

    problems: list[str] = []
    unsaved = 0
    todo = [number for number, case in enumerate(cases) if case.name not in done]
    with console.Progress(f"packing {split}", len(cases), "cases", len(done)) as bar:
        for number, result in ordered_map(pack_number, todo):
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
                write_json(folder / PROGRESS, {"settings": settings, "splits": all_done})
    return problems


def read_and_pack(case: Case, settings: dict[str, Any]) -> PackedCase:
    """Read a case, measure its grey values and pack it."""
    grey, labels = case.load_fn()
    return *pack_slices((grey, labels), case.pixel_mm, settings), measure(grey)


def copy_case(case: Case, split: str, earlier: Earlier) -> PackedCase | None:
    """A case that has not changed since an earlier packing.

    None if there is no such packing, or if its arrays do not match their checksums.
    """
    folder, record = earlier.get((split, case.name), (None, {}))
    if folder is None or not is_unchanged(case, record):
        return None
    rows = slice(record["row"], record["row"] + case.num_slices)
    paths = (folder / f"{split}_{kind}.npy" for kind in ("images", "labels"))
    images, labels = (np.array(map_array(x)[rows]) for x in paths)
    values = record_values(record)
    same = checksums(images, labels) == record["crc32"]
    return (images, labels, values) if same and values else None


def open_array(path: pathlib.Path, shape: tuple[int, ...], begun: bool) -> np.memmap:
    """Open the array to pack into, a new one unless `begun`, and reserve its disk space."""
    mode = "r+" if begun else "w+"
    array = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        # Writing to a hole of a memory map on a full disk would kill the process (SIGBUS).
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
