"""Packs a data set once, into memory-mapped uint8 arrays and a manifest.

`PACKED/manifest.json` describes the arrays in its folder `arrays`: `{split}_images.npy` and
`{split}_labels.npy`, uint8[n h w], which numpy can read. The manifest is written last and
atomically, so arrays that are still being packed are never read; `progress.json` next to the arrays
records the progress. The manifest's `held_out` names the training cases that validate, by split
setting.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from usam_jax.data import splits
from usam_jax.data.case import Cases, find_fault
from usam_jax.data.class_names import require_class_names
from usam_jax.data.datasets.registry import find_left_out, get_spec, list_cases
from usam_jax.data.packed.build import CHECK, PROGRESS, count_slices, hash_json, pack
from usam_jax.data.packed.encode import is_unchanged, label_file
from usam_jax.data.packed.format import MANIFEST, VERSION, Packed, open_packed, record_doubts
from usam_jax.data.patients import shared_patients
from usam_jax.data.values import describe_doubts
from usam_jax.io.cohort import describe_count
from usam_jax.utils import console
from usam_jax.utils.errors import DISK_FULL, DataError, UsageError, list_some
from usam_jax.utils.files import read_json, write_json
from usam_jax.utils.outputs import is_json_with

MIN_IMAGE_SIZE = 16  # pixels; each network says which sizes it takes


def packing_settings(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.data` that decide the packed bytes, for given source files.

    Raises UsageError for a value that makes no sense.
    """

    def expect(ok: bool, field: str, expected: str) -> None:
        if not ok:
            found = config[field.split(".")[1]]
            raise UsageError(f"config.{field}: got {found!r}, expected {expected}")

    spec = get_spec(config.kind)
    require_class_names(config.classes, "config.data.classes")
    expect(config.intensity in ("clip", "wrap"), "data.intensity", "clip or wrap")
    expect(config.window_width > 0, "data.window_width", "more than 0")
    expect(config.clahe_limit >= 0, "data.clahe_limit", "0 or more")
    expect(config.image_size >= MIN_IMAGE_SIZE, "model.image_size", f"{MIN_IMAGE_SIZE} or more")
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
    return settings | spec.packing_settings(config)


def prepare(config: ConfigDict, folder: pathlib.Path | None = None) -> Packed:
    """Pack the data set of `config.data`, as far as it is not packed yet, and open it.

    It is packed into `folder`, or into a folder of its own in `packed_dir`. Warns of cases whose
    grey values look wrong. Raises DataError with the faulty cases if the source cannot be used, and
    UsageError for an invalid setting.
    """
    packed = open_or_pack(config, folder)
    if doubts := record_doubts(packed.manifest["splits"]):
        console.info(f"{packed.folder}: warning: {describe_doubts(doubts)}")
    return packed


def open_or_pack(config: ConfigDict, folder: pathlib.Path | None) -> Packed:
    """Open a packed data set, or pack its source as far as it is not packed yet."""
    settings = packing_settings(config)
    splits.check_splitting(config)
    if config.kind == "packed":
        packed = open_packed(pathlib.Path(config.root))
        require_settings(packed, settings)
        if os.access(packed.folder / MANIFEST, os.W_OK):  # a shared data set may be read-only
            with locked(packed.folder):
                splits.record_held_out(packed.folder / MANIFEST, packed.manifest, config)
        return packed
    cases = list_cases(config)
    require_usable(cases)
    if left_out := find_left_out(config):
        console.info(f"warning: {describe_count(left_out)}")
    folder = folder or pathlib.Path(config.packed_dir) / packed_name(config, settings)
    if (folder / MANIFEST).is_file() and not os.access(folder / MANIFEST, os.W_OK):
        manifest = read_json(folder / MANIFEST)
        if (current := refresh(manifest, cases, settings)) is not None:
            return Packed(folder, current)
    try:
        require_own(folder)
        with locked(folder):
            before = read_json(folder / MANIFEST)
            manifest = refresh(before, cases, settings) or {}
            if not manifest:
                if before:
                    console.info(f"{folder}: the source has changed, packing what changed")
                manifest = pack(cases, settings, arrays_name(cases, settings), folder)
            elif manifest != before:
                write_json(folder / MANIFEST, manifest)
            splits.record_held_out(folder / MANIFEST, manifest, config)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise DataError(f"{folder}: cannot be written ({error})") from error
        raise DataError(
            f"{folder}: the disk is full ({error}); packing needs "
            f"{bytes_needed(cases, config.image_size) / 1e9:.2f} GB. Free some space and start "
            "again (it resumes where it stopped), or set config.data.packed_dir."
        ) from error
    return Packed(folder, manifest)


def require_settings(packed: Packed, settings: dict[str, Any]) -> None:
    """Raise UsageError if a packed data set was packed with other settings than the config's."""
    found = packed.manifest["settings"]
    names = {
        "classes": "classes",
        "image_size": "image_size",
        "intensity": "intensity",
        "clahe_limit": "clahe_limit",
        "window_hu": "window_level and window_width",
    }
    differing = [
        f"config.data.{names[x]}: got {settings[x]}, expected {found[x]} as it was packed with"
        for x in names
        if settings[x] != found[x]
    ]
    if differing:
        raise UsageError(
            f"{packed.folder} is packed with other settings:\n{list_some(differing)}\n"
            "Set these, or pack the source again."
        )


def require_usable(cases: Cases) -> None:
    """Raise DataError if cases cannot be used or patients are in several splits."""
    unusable = [x for found in cases.values() for x in found if not x.num_slices]
    problems = [str(find_fault(x)) for x in unusable]
    problems += [
        f"patient {patient} is in several splits: {', '.join(names)}"
        for patient, names in shared_patients(cases).items()
    ]
    if problems:
        raise DataError(f"{len(problems)} faults of the data set:\n{list_some(problems)}\n{CHECK}")


def require_own(folder: pathlib.Path) -> None:
    """Raise UsageError if the folder holds anything else, which packing could destroy.

    A packed data set has an empty file `lock`, and JSON files with the keys that packing writes.
    """
    is_used = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if is_used and not is_own(folder):
        raise UsageError(
            f"{folder}: found a file, or a folder that holds something else than a packed data "
            "set; give a folder that does not exist yet"
        )


def is_own(folder: pathlib.Path) -> bool:
    """Whether a folder is that of a packed data set, even of one whose packing was interrupted."""
    lock, manifest = folder / "lock", folder / MANIFEST
    if not lock.is_file() or lock.stat().st_size:
        return False
    if manifest.is_file() and not is_json_with("settings", "splits")(manifest):
        return False
    return all(map(is_json_with("settings", "splits"), folder.glob(f"*/{PROGRESS}")))


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock, so that concurrent runs do not pack at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.info(f"{folder}: waiting for another process that is packing")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refresh(
    manifest: dict[str, Any], cases: Cases, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """A manifest with the files' present times and places, or None if it is of other data."""
    if (
        not manifest
        or manifest["settings"] != settings
        or manifest["splits"].keys() != cases.keys()
    ):
        return None
    listed = {}
    for split, found in cases.items():
        records = manifest["splits"][split]
        named = [(x["name"], x["patient"]) for x in records]
        if named != [(x.name, x.patient) for x in found]:
            return None
        if not all(is_unchanged(x, record) for x, record in zip(found, records, strict=True)):
            return None
        listed[split] = [
            record | {"stamp": x.source_stamp, "label_file": label_file(x)}
            for x, record in zip(found, records, strict=True)
        ]
    return manifest | {"splits": listed}


def arrays_name(cases: Cases, settings: dict[str, Any]) -> str:
    """The name of the folder of arrays, different for other settings, cases and stamps."""
    stamps = {
        split: [[x.name, x.patient, x.source_stamp] for x in found]
        for split, found in cases.items()
    }
    return hash_json([settings, stamps])[:12]


def packed_name(config: ConfigDict, settings: dict[str, Any]) -> str:
    """The folder's name, different for each source and its settings."""
    root = str(pathlib.Path(config.root).resolve()) if config.root else ""
    digest = hashlib.sha256(json.dumps([root, settings]).encode()).hexdigest()[:8]
    return "_".join([config.kind, *([pathlib.Path(root).name] if root else []), digest])


def bytes_needed(cases: Cases, size: int) -> int:
    """The size in bytes of the packed arrays."""
    return 2 * size * size * sum(count_slices(found) for found in cases.values())
