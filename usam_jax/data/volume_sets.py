"""Data sets of CT volumes: WORD and nnU-Net's layout (NIfTI), and the published WORD slices."""

import functools
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.case import Case, Slices, natural_order
from usam_jax.data.volumes import read_geometry, read_labels, read_slices, window_hu
from usam_jax.errors import DataError, UsageError, list_some

WHERE_IS_WORD = "WORD is given out by its authors on request; configs/phantom.py needs no data."


def word_cases(root: pathlib.Path, config: ConfigDict) -> dict[str, list[Case]]:
    """WORD as distributed: `imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs`."""
    names = {"train": "Tr", "val": "Val", "test": "Ts"}
    if not (root / "imagesTr").is_dir():
        raise DataError(
            f"{root} has no folder imagesTr; config.data.root should be WORD's, which holds imagesTr "
            f"labelsTr imagesVal labelsVal imagesTs labelsTs.\n{WHERE_IS_WORD}"
        )
    return {
        split: volume_cases(root / f"images{end}", root / f"labels{end}", ".nii.gz", "", config)
        for split, end in names.items()
    }


def nnunet_cases(root: pathlib.Path, config: ConfigDict) -> dict[str, list[Case]]:
    """An nnU-Net raw data set; `labelsTs` may be missing, then there is no test split."""
    description = read_description(root / "dataset.json", config)
    ending, suffix = description["file_ending"], "_0000"
    cases = {"train": volume_cases(root / "imagesTr", root / "labelsTr", ending, suffix, config)}
    if (root / "labelsTs").is_dir():
        cases["test"] = volume_cases(root / "imagesTs", root / "labelsTs", ending, suffix, config)
    return cases


def read_description(path: pathlib.Path, config: ConfigDict) -> dict:
    """nnU-Net's `dataset.json`. Raises where it is absent or does not fit the config's classes."""
    try:
        description = json.loads(path.read_text())
        labels = {name: int(value) for name, value in description["labels"].items()}
        channels = description["channel_names"]
        description["file_ending"]
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is not there; config.data.root should be an nnU-Net raw data set, which holds "
            "dataset.json imagesTr labelsTr and, for a test, imagesTs labelsTs"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: found no usable description ({error!r}), expected labels (name: number), "
            "channel_names and file_ending as nnU-Net writes them"
        ) from error
    if len(channels) != 1:
        raise DataError(f"{path}: has {len(channels)} channels {channels}, expected one, CT")
    classes = tuple(sorted(labels, key=lambda name: labels[name]))
    if sorted(labels.values()) != list(range(len(labels))):
        raise DataError(f"{path}: labels are {labels}, expected the numbers 0, 1, 2, ...")
    if classes != tuple(config.classes):
        raise UsageError(
            f"config.data.classes: found {tuple(config.classes)}, but {path} says {classes}; give "
            f'--config.data.classes="{classes}" --config.model.num_classes={len(classes)}'
        )
    return description


def volume_cases(
    images: pathlib.Path, labels: pathlib.Path, ending: str, suffix: str, config: ConfigDict
) -> list[Case]:
    """A case for each label file, whose image is `images/NAME{suffix}{ending}`."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise DataError(f"{folder} is not there")
    names = [path.name.removesuffix(ending) for path in labels.glob(f"*{ending}")]
    if not names:
        raise DataError(f"{labels} holds no labels (NAME{ending})")
    absent = [name for name in names if not (images / f"{name}{suffix}{ending}").is_file()]
    if absent:
        raise DataError(
            f"{images}: {len(absent)} of {len(names)} labels have no image NAME{suffix}{ending}:\n"
            f"{list_some(sorted(absent))}"
        )
    return [
        volume_case(name, images / f"{name}{suffix}{ending}", labels / f"{name}{ending}", config)
        for name in sorted(names, key=natural_order)
    ]


def volume_case(name: str, image: pathlib.Path, label: pathlib.Path, config: ConfigDict) -> Case:
    geometry = read_geometry(image)
    window = (config.window_level, config.window_width)
    stamp = [x for path in (image, label) for x in (path.stat().st_size, path.stat().st_mtime_ns)]
    load_fn = functools.partial(load_volume, image, label, len(config.classes), *window)
    return Case(name, name, geometry.shape[0], stamp, load_fn, geometry)


def load_volume(
    image: pathlib.Path, label: pathlib.Path, num_classes: int, level: float, width: float
) -> Slices:
    """The slices of a CT and its labels. Raises DataError where the two do not lie on each other."""
    a, b = read_geometry(image), read_geometry(label)
    if a.file_shape != b.file_shape:
        raise DataError(f"{label}: has the shape {b.file_shape}, but {image} has {a.file_shape}")
    if not np.allclose(a.affine, b.affine, atol=1e-2):
        raise DataError(
            f"{label}: lies elsewhere in space than {image} (affines differ by up to "
            f"{np.abs(np.subtract(a.affine, b.affine)).max():.3g} mm); resample it onto the image"
        )
    hu = read_slices(image)
    if hu.dtype.kind == "f" and not np.isfinite(hu).all():
        raise DataError(f"{image}: holds NaN or infinite values")
    return window_hu(hu, level, width), read_labels(label, num_classes)


def npy_cases(root: pathlib.Path, num_classes: int) -> dict[str, list[Case]]:
    """WORD as the published code packs it: uint8 slices `SPLIT/npy_imgs` and `SPLIT/npy_gts`."""
    cases = {}
    for split in ("train", "val", "test"):
        images, labels = root / split / "npy_imgs", root / split / "npy_gts"
        if split == "val" and not images.is_dir():
            continue
        names = sorted((path.name for path in images.glob("*.npy")), key=natural_order)
        if not names:
            raise DataError(f"{images} holds no slices (NAME.npy)")
        absent = [name for name in names if not (labels / name).is_file()]
        if absent:
            raise DataError(f"{labels} lacks the labels of:\n{list_some(absent)}")
        cases[split] = [npy_case(images / name, labels / name, num_classes) for name in names]
    return cases


def npy_case(image: pathlib.Path, label: pathlib.Path, num_classes: int) -> Case:
    stamp = [x for path in (image, label) for x in (path.stat().st_size, path.stat().st_mtime_ns)]
    load_fn = functools.partial(load_npy, image, label, num_classes)
    return Case(image.stem, None, 1, stamp, load_fn)


def load_npy(image: pathlib.Path, label: pathlib.Path, num_classes: int) -> Slices:
    """One slice. Raises DataError for anything but two uint8 arrays of one shape."""
    arrays = []
    for path in (image, label):
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable .npy ({error}); copy it anew") from error
        if array.ndim != 2 or array.dtype != np.uint8:
            raise DataError(
                f"{path}: has the shape {array.shape} and type {array.dtype}, expected uint8[h w]"
            )
        arrays.append(array)
    grey, labels = arrays
    if grey.shape != labels.shape:
        raise DataError(f"{label}: has the shape {labels.shape}, but {image} has {grey.shape}")
    if labels.max() >= num_classes:
        raise DataError(f"{label}: holds the label {labels.max()}, expected 0 to {num_classes - 1}")
    return grey[None].astype(np.float32) / 255, labels[None]
