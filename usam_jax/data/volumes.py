"""Cases from CT volumes and label volumes, for the layouts that consist of them."""

import functools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.case import (
    Case,
    Slices,
    files_named,
    natural_order,
    source_stamp,
    unusable_case,
)
from usam_jax.data.pixels import window_hu
from usam_jax.io.cohort import find_others
from usam_jax.io.nifti import (
    header_warnings,
    read_geometry,
    read_labels,
    read_slices,
    require_same_grid,
)
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, require_file


def volume_cases(
    root: pathlib.Path, part: str, image_end: str, label_end: str, data: ConfigDict
) -> list[Case]:
    """The cases `images{part}/NAME{image_end}`, `labels{part}/NAME{label_end}`."""
    images, labels = root / f"images{part}", root / f"labels{part}"
    for folder in (images, labels):
        if not folder.is_dir():
            raise DataError(f"{folder} is not there")
    image_of, label_of = files_named(images, image_end), files_named(labels, label_end)
    if not image_of and not label_of:
        raise DataError(f"{labels} holds no labels (NAME{label_end})")
    return [
        volume_case(
            name,
            image_of.get(name, images / f"{name}{image_end}"),
            label_of.get(name, labels / f"{name}{label_end}"),
            data,
        )
        for name in sorted(image_of | label_of, key=natural_order)
    ]


def others_of(
    root: pathlib.Path, part: str, image_end: str, label_end: str
) -> dict[pathlib.Path, str]:
    """What lies in the folders of `volume_cases` and is left out, with the reasons."""
    images, labels = root / f"images{part}", root / f"labels{part}"
    return find_others(images, image_end) | find_others(labels, label_end)


def volume_case(name: str, image: pathlib.Path, label: pathlib.Path, data: ConfigDict) -> Case:
    """The case of an image and its label, unusable if one of them cannot be read."""
    try:
        for path, other in ((image, label), (label, image)):
            require_file(path)
            if not path.exists():
                raise DataError(f"{path} is not there, which {other} needs", "copy it again")
        geometry, stamp = read_geometry(image), source_stamp(image, label)
    except DataError as error:
        return unusable_case(name, error)
    window = (data.window_level, data.window_width)
    load_fn = functools.partial(load_volume, image, label, len(data.classes), *window)
    return Case(name, name, geometry.shape[0], stamp, load_fn, geometry, (image, label))


def load_volume(
    image: pathlib.Path, label: pathlib.Path, num_classes: int, level: float, width: float
) -> Slices:
    """The slices of a CT and its labels, both reoriented by the affine of the CT.

    Prints warnings about their headers. Raises DataError if their grids differ.
    """
    geometry = require_same_grid(image, label)
    for warning in header_warnings([image, label]):
        console.info(f"warning: {warning}")
    hu = read_slices(image)
    if hu.dtype.kind == "f" and not np.isfinite(hu).all():
        raise DataError(f"{image}: holds NaN or infinite values", "export it again")
    return window_hu(hu, level, width), read_labels(label, num_classes, geometry.affine)
