"""A data set, packed once: uint8 arrays that are memory-mapped, and a manifest beside them.

`PACKED/manifest.json` tells what the arrays in its folder `arrays` hold: `{split}_images.npy` and
`{split}_labels.npy`, uint8[n h w]. Anyone with numpy can read them. The manifest comes last and in
one piece, so arrays that are still being packed are never read; `progress.json` beside those says
how far packing came. `held_out` in it names the training cases that validate, by split setting.
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
from usam_jax.data.datasets.registry import get_spec, list_cases
from usam_jax.data.packed.build import CHECK, count_slices, pack
from usam_jax.data.packed.format import MANIFEST, VERSION, Packed, open_packed
from usam_jax.data.patients import shared_patients
from usam_jax.utils import console
from usam_jax.utils.errors import DISK_FULL, DataError, UsageError, list_some
from usam_jax.utils.files import read_json


def packing_settings(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.data` that decide the packed bytes, for given source files.

    Raises UsageError for a value that makes no sense.
    """

    def expect(ok: bool, field: str, expected: str) -> None:
        if not ok:
            found = config[field.split(".")[1]]
            raise UsageError(f"config.{field}: found {found!r}, expected {expected}")

    spec = get_spec(config.kind)
    expect(config.intensity in ("clip", "wrap"), "data.intensity", "clip or wrap")
    expect(config.window_width > 0, "data.window_width", "more than 0")
    expect(config.clahe_limit >= 0, "data.clahe_limit", "0 or more")
    expect(
        config.image_size >= 16 and config.image_size % 16 == 0,
        "model.image_size",
        "a multiple of 16",
    )
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
    """The packed data set of `config.data`, packing what is not packed yet.

    It lies in `folder`, or in a folder of its own in `packed_dir`. Raises DataError for a source
    that cannot be used, naming the faulty cases, and UsageError for a setting that does not exist.
    """
    settings = packing_settings(config)
    splits.check_splitting(config)
    if config.kind == "packed":
        packed = open_packed(pathlib.Path(config.root))
        require_settings(packed, settings)
        if os.access(packed.folder / MANIFEST, os.W_OK):  # a shared one may be read-only
            with locked(packed.folder):
                splits.record_held_out(packed.folder / MANIFEST, packed.manifest, config)
        return packed
    cases = list_cases(config)
    require_usable(cases)
    fingerprint = make_fingerprint(cases, settings)
    folder = folder or pathlib.Path(config.packed_dir) / packed_name(config, settings)
    if (folder / MANIFEST).is_file() and not os.access(folder / MANIFEST, os.W_OK):
        manifest = read_json(folder / MANIFEST)
        if manifest.get("fingerprint") == fingerprint:
            return Packed(folder, manifest)
    try:
        require_own(folder)
        with locked(folder):
            manifest = read_json(folder / MANIFEST)
            if manifest.get("fingerprint") != fingerprint:
                if manifest:
                    console.info(f"{folder}: the source has changed, packing what changed")
                manifest = pack(cases, settings, fingerprint, folder)
            splits.record_held_out(folder / MANIFEST, manifest, config)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise DataError(f"{folder}: cannot be written ({error})") from error
        raise DataError(
            f"{folder}: the disk is full ({error}); packing needs "
            f"{bytes_needed(cases, config.image_size) / 1e9:.2f} GB. Free some space and start "
            "again (it goes on where it stopped), or set config.data.packed_dir."
        ) from error
    return Packed(folder, manifest)


def require_settings(packed: Packed, settings: dict[str, Any]) -> None:
    """Raises UsageError where a packed data set is not packed as the config says."""
    found = packed.manifest["settings"]
    names = {
        "classes": "classes",
        "image_size": "image_size",
        "intensity": "intensity",
        "clahe_limit": "clahe_limit",
        "window_hu": "window_level and window_width",
    }
    differing = [
        f"config.data.{names[x]}: the config says {settings[x]}, it was packed with {found[x]}"
        for x in names
        if settings[x] != found[x]
    ]
    if differing:
        raise UsageError(
            f"{packed.folder} is packed with other settings:\n{list_some(differing)}\n"
            "Set them so, or pack the source anew."
        )


def require_usable(cases: Cases) -> None:
    """Raises DataError for cases that cannot be read and patients that are in two splits."""
    unusable = [x for found in cases.values() for x in found if not x.num_slices]
    problems = [str(find_fault(x)) for x in unusable]
    problems += [
        f"patient {patient} is in several splits: {', '.join(names)}"
        for patient, names in shared_patients(cases).items()
    ]
    if problems:
        raise DataError(f"{len(problems)} faults of the data set:\n{list_some(problems)}\n{CHECK}")


def require_own(folder: pathlib.Path) -> None:
    """Raises UsageError for a folder that holds something else, which packing might destroy."""
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / "lock").is_file()
    ):
        raise UsageError(
            f"{folder} is a file, or a folder that holds something else than a packed data set; "
            "give one that is not there yet"
        )


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time in, so that two runs started together do not pack at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.info(f"{folder}: waiting for another process that is packing")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_fingerprint(cases: Cases, settings: dict[str, Any]) -> str:
    """Changes with any setting, any case's name and patient, and any file's size or time."""
    stamps = {
        split: [[x.name, x.patient, x.source_stamp] for x in found]
        for split, found in cases.items()
    }
    text = json.dumps([settings, stamps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def packed_name(config: ConfigDict, settings: dict[str, Any]) -> str:
    """A folder name of its own for each source and its settings, so that no two runs share one."""
    root = str(pathlib.Path(config.root).resolve()) if config.root else ""
    digest = hashlib.sha256(json.dumps([root, settings]).encode()).hexdigest()[:8]
    return "_".join([config.kind, *([pathlib.Path(root).name] if root else []), digest])


def bytes_needed(cases: Cases, size: int) -> int:
    return 2 * size * size * sum(count_slices(found) for found in cases.values())
