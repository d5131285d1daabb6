"""The format of a packed data set: memory-mapped arrays and a manifest, readable with numpy."""

import dataclasses
import functools
import operator
import pathlib
import zlib
from typing import Any

import numpy as np

from usam_jax.data.case import Case, Cases, Slices
from usam_jax.data.values import GreyValues, doubt
from usam_jax.utils.errors import DataError, UserError, reading
from usam_jax.utils.files import read_json

VERSION = 4
MANIFEST = "manifest.json"
SETTINGS = ("kind", "classes", "image_size", "intensity", "window_hu", "clahe_limit")
FIELDS = (
    *("name", "patient", "num_slices", "stamp", "row", "foreground", "crc32", "geometry"),
    "label_file",
)
PREPARE = "python -m tools.prepare SOURCE DEST"


@dataclasses.dataclass(frozen=True)
class Packed:
    """An open packed data set: its memory-mapped arrays, and its cases and slices by split."""

    folder: pathlib.Path
    manifest: dict[str, Any]

    def images(self, split: str) -> np.ndarray:
        """The images of a split, uint8[n h w]."""
        return map_array(self.path(split, "images"))

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split, class indices uint8[n h w]."""
        return map_array(self.path(split, "labels"))

    def path(self, split: str, kind: str) -> pathlib.Path:
        """The file of a split's `images` or `labels`."""
        return self.folder / self.manifest["arrays"] / f"{split}_{kind}.npy"

    def cases(self, split: str) -> list[dict[str, Any]]:
        """Name, patient (or None), number of slices, geometry and checksum of each case."""
        return self.manifest["splits"].get(split, [])

    def slices(self, split: str) -> list[dict[str, Any]]:
        """Name, case, patient and index in the case of each slice, and if it has foreground."""
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
    """Memory-maps a packed array uint8[n h w]. Raises DataError if it is damaged."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a readable packed array ({error})", repack_advice(path)
        ) from error
    if array.dtype != np.uint8 or array.ndim != 3:
        raise DataError(f"{path}: holds {array.dtype}{array.shape}, expected uint8[n h w]")
    return array


def repack_advice(path: pathlib.Path) -> str:
    """What to do about a damaged array."""
    return f"delete {path.parent.parent} and pack again ({PREPARE})"


def open_packed(folder: pathlib.Path) -> Packed:
    """Open a packed data set. Raises DataError if there is none of this format version."""
    try:
        manifest = read_json(folder / MANIFEST)
        version = manifest.get("settings", {}).get("version")
    except (UserError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: damaged", f"pack again ({PREPARE})") from error
    if version != VERSION:
        found = f"of version {version}" if manifest else "that is not there"
        raise DataError(
            f"{folder}: has a {MANIFEST} {found}, expected version {VERSION}",
            f"pack the data set ({PREPARE})",
        )
    with reading(folder / MANIFEST, "damaged", f"pack again ({PREPARE})"):
        check_manifest(manifest)
    return Packed(folder, manifest)


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or AttributeError if a manifest lacks what is read from it."""
    operator.itemgetter(*SETTINGS)(manifest["settings"])
    pathlib.Path(manifest["arrays"])
    for records in manifest["splits"].values():
        for record in records:
            operator.itemgetter(*FIELDS)(record)
            record_values(record)


def packed_cases(folder: pathlib.Path) -> Cases:
    """The cases of a packed data set, which verify their checksums when loaded."""
    packed = open_packed(folder)
    return {
        split: [
            Case(
                x["name"],
                x["patient"],
                x["num_slices"],
                x["stamp"],
                functools.partial(load_packed, packed, split, x),
                packed_values=record_values(x),
            )
            for x in packed.cases(split)
        ]
        for split in packed.manifest["splits"]
    }


def record_values(record: dict[str, Any]) -> GreyValues | None:
    """The grey values that a case had before it was packed, None if its record lacks them."""
    return GreyValues(**record["values"]) if "values" in record else None


def record_doubts(splits: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """What is doubtful about the grey values of packed cases, by SPLIT/NAME."""
    found = {
        f"{split}/{x['name']}": doubt(values, x["geometry"] is not None)
        for split, records in splits.items()
        for x in records
        if (values := record_values(x))
    }
    return {name: text for name, text in found.items() if text}


def load_packed(packed: Packed, split: str, record: dict[str, Any]) -> Slices:
    """The slices of one case as packed. Raises DataError if they do not match their checksums."""
    rows = slice(record["row"], record["row"] + record["num_slices"])
    arrays = []
    for kind, expected in zip(("images", "labels"), record["crc32"], strict=True):
        path = packed.path(split, kind)
        array = np.array(map_array(path)[rows])
        if zlib.crc32(array.tobytes()) != expected:
            raise DataError(
                f"{path}: the checksum of {record['name']} (rows {rows.start} to {rows.stop - 1}) "
                "differs from the manifest's",
                repack_advice(path),
            )
        arrays.append(array)
    images, labels = arrays
    return images.astype(np.float32) / 255, labels
