"""A packed data set, opened: memory-mapped arrays and a manifest, readable with numpy alone."""

import dataclasses
import functools
import pathlib
import zlib
from typing import Any

import numpy as np

from usam_jax.data.case import Case, Cases, Slices
from usam_jax.utils.errors import DataError, UserError
from usam_jax.utils.files import read_json

VERSION = 4
MANIFEST = "manifest.json"
PREPARE = "python -m tools.prepare SOURCE DEST"


@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed data set, opened: memory-mapped arrays and the manifest's slices by split."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    def images(self, split: str) -> np.ndarray:
        """uint8[n h w]"""
        return map_array(self.path(split, "images"))

    def labels(self, split: str) -> np.ndarray:
        """uint8[n h w], class indices"""
        return map_array(self.path(split, "labels"))

    def path(self, split: str, kind: str) -> pathlib.Path:
        """The file of a split's `images` or `labels`."""
        return self.folder / self.manifest["arrays"] / f"{split}_{kind}.npy"

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


def map_array(path: pathlib.Path) -> np.ndarray:
    """A packed array uint8[n h w], memory-mapped. Raises DataError where it is damaged."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a readable packed array ({error})", pack_anew(path)
        ) from error
    if array.dtype != np.uint8 or array.ndim != 3:
        raise DataError(f"{path}: holds {array.dtype}{array.shape}, expected uint8[n h w]")
    return array


def pack_anew(path: pathlib.Path) -> str:
    return f"delete {path.parent.parent} and pack anew ({PREPARE})"


def open_packed(folder: pathlib.Path) -> Packed:
    """Opens a packed data set. Raises DataError where there is none that this version reads."""
    try:
        manifest = read_json(folder / MANIFEST)
        version = manifest.get("settings", {}).get("version")
    except (UserError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: damaged", f"pack anew ({PREPARE})") from error
    if version != VERSION:
        found = f"of version {version}" if manifest else "that is not there"
        raise DataError(
            f"{folder}: has a {MANIFEST} {found}, expected version {VERSION}",
            f"pack the data set ({PREPARE})",
        )
    return Packed(folder, manifest)


def packed_cases(folder: pathlib.Path) -> Cases:
    """The cases of a packed data set; loading one compares it with its checksums."""
    packed = open_packed(folder)
    return {
        split: [
            Case(
                x["name"],
                x["patient"],
                x["num_slices"],
                x["stamp"],
                functools.partial(load_packed, packed, split, x),
            )
            for x in packed.cases(split)
        ]
        for split in packed.manifest["splits"]
    }


def load_packed(packed: Packed, split: str, record: dict[str, Any]) -> Slices:
    """Slices of one case as packed. Raises DataError where they are not what was packed."""
    rows = slice(record["row"], record["row"] + record["num_slices"])
    arrays = []
    for kind, expected in zip(("images", "labels"), record["crc32"], strict=True):
        path = packed.path(split, kind)
        array = np.array(map_array(path)[rows])
        if zlib.crc32(array.tobytes()) != expected:
            raise DataError(
                f"{path}: the checksum of {record['name']} (rows {rows.start} to {rows.stop - 1}) "
                "is not the manifest's",
                pack_anew(path),
            )
        arrays.append(array)
    images, labels = arrays
    return images.astype(np.float32) / 255, labels
