"""A case as it is packed: uint8 slices, and a record in the manifest."""

import dataclasses
import zlib
from typing import Any

import cv2
import numpy as np

from usam_jax.data.case import Case, Slices, files_unchanged
from usam_jax.data.pixels import fit_square
from usam_jax.data.values import GreyValues
from usam_jax.utils.files import checksum

CLAHE_TILES = (8, 8)


def make_clahe(limit: float) -> Any:
    """OpenCV's CLAHE with this clip limit, or None for 0."""
    return cv2.createCLAHE(clipLimit=limit, tileGridSize=CLAHE_TILES) if limit else None


def pack_case(case: Case, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read a case and pack its images and labels, both uint8[n size size]."""
    return pack_slices(case.load_fn(), case.pixel_mm, settings)


def pack_slices(
    slices: Slices, pixel_mm: tuple[float, float], settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the slices of a case, with pixels of this height and width, to uint8[n size size]."""
    size, intensity = settings["image_size"], settings["intensity"]
    clahe = make_clahe(settings["clahe_limit"])
    grey, labels = slices
    images = [pack_image(x, size, intensity, clahe, pixel_mm) for x in grey]
    fitted = [fit_square(x, size, pixel_mm, labels=True) for x in labels]
    return np.stack(images), np.stack(fitted)


def pack_image(
    grey: np.ndarray,
    size: int,
    intensity: str,
    clahe: Any,
    pixel_mm: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Converts grey float[h w] in [0, 1] to uint8[size size], and applies `clahe` if any.

    Values outside [0, 1] are clipped if `intensity` is "clip"; with "wrap" they overflow, as in the
    published code.
    """
    if intensity == "clip":
        grey = np.clip(grey, 0.0, 1.0)
    image = (grey * 255).astype(np.int64).astype(np.uint8)
    image = fit_square(image, size, pixel_mm, labels=False)
    return clahe.apply(image) if clahe else image


def checksums(images: np.ndarray, labels: np.ndarray) -> list[int]:
    """CRC-32 of the images and of the labels."""
    return [zlib.crc32(x.tobytes()) for x in (images, labels)]


def label_file(case: Case) -> str | None:
    """The label volume of a case, or None if it has none."""
    return str(case.files[1].resolve()) if case.geometry and case.files else None


def is_unchanged(case: Case, record: dict[str, Any]) -> bool:
    """Whether the source of a case is as it was when `record` was made."""
    if case.source_stamp == record["stamp"]:
        return True
    known = record.get("digests")
    return bool(case.files) and files_unchanged(case.files, record["stamp"], known)


def describe_case(
    case: Case, images: np.ndarray, labels: np.ndarray, values: GreyValues
) -> dict[str, Any]:
    """The record of a case in the manifest, but for its row."""
    return {
        "name": case.name,
        "patient": case.patient,
        "num_slices": case.num_slices,
        "stamp": case.source_stamp,
        "digests": [checksum(x) for x in case.files],
        "foreground": [int(label.any()) for label in labels],
        "crc32": checksums(images, labels),
        "values": dataclasses.asdict(values),
        "geometry": dataclasses.asdict(case.geometry) if case.geometry else None,
        "label_file": label_file(case),
    }
