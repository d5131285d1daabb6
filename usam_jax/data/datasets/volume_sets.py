"""Data sets of CT volumes: WORD and nnU-Net's layout (NIfTI), and the published WORD slices."""

import functools
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.case import (
    Case,
    Cases,
    Slices,
    file_names,
    natural_order,
    source_stamp,
    unusable_case,
)
from usam_jax.io.nifti import (
    MAX_OFF_VOXELS,
    distance_mm,
    read_geometry,
    read_labels,
    read_slices,
    window_hu,
)
from usam_jax.utils.errors import DataError, UsageError

ENDINGS = (".nii.gz", ".nii")
WHERE_IS_WORD = "WORD is given out by its authors on request; configs/phantom.py needs no data."


def stem(path: pathlib.PurePath) -> str:
    """The file's name without .nii or .nii.gz, or else its last suffix."""
    end = next((x for x in ENDINGS if path.name.endswith(x)), path.suffix)
    return path.name.removesuffix(end)


def word_cases(root: pathlib.Path, config: ConfigDict) -> Cases:
    """WORD as distributed: `imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs`.

    A part whose labels are not there is left out.
    """
    names = {"train": "Tr", "val": "Val", "test": "Ts"}
    if not (root / "imagesTr").is_dir():
        raise DataError(
            f"{root} has no folder imagesTr; config.data.root should be WORD's, which holds imagesTr "
            f"labelsTr imagesVal labelsVal imagesTs labelsTs.\n{WHERE_IS_WORD}"
        )
    return {
        split: volume_cases(root, end, ".nii.gz", ".nii.gz", config)
        for split, end in names.items()
        if split == "train" or (root / f"labels{end}").is_dir()
    }


def nnunet_cases(root: pathlib.Path, config: ConfigDict) -> Cases:
    """An nnU-Net raw data set; `labelsTs` may be missing, then there is no test split.

    The training files are those that `dataset.json` lists under `dataset`, where it does.
    """
    path = root / "dataset.json"
    description = read_description(path)
    classes, ending = class_names(description), description["file_ending"]
    if classes != tuple(config.classes):
        raise UsageError(
            f"config.data.classes: found {tuple(config.classes)}, but {path} says {classes}; take "
            "--config=configs/nnunet.py, which reads them from there"
        )
    if listed := description.get("dataset"):
        train = listed_cases(listed, path, config)
    else:
        train = volume_cases(root, "Tr", f"_0000{ending}", ending, config)
    cases = {"train": train}
    if (root / "labelsTs").is_dir():
        cases["test"] = volume_cases(root, "Ts", f"_0000{ending}", ending, config)
    number = description.get("numTraining", len(train))
    if number != len(train):
        wrong = DataError(
            f"{path}: says numTraining {number}, found {len(train)} cases",
            "copy what is missing, or correct the number",
        )
        train.append(unusable_case(path.name, wrong))
    return cases


def read_description(path: pathlib.Path) -> dict:
    """nnU-Net's `dataset.json`. Raises DataError where it is absent or tells of no CT volumes."""
    try:
        description = json.loads(path.read_text())
        labels = description["labels"]
        regions = [name for name, value in labels.items() if not isinstance(value, int)]
        channels = description["channel_names"]
        ending = description["file_ending"]
        num_channels, channel = len(channels), next(iter(channels.values()))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is not there; config.data.root should be an nnU-Net raw data set, which holds "
            "dataset.json imagesTr labelsTr and, for a test, imagesTs labelsTs"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(
            f"{path}: found no usable description ({error!r}), expected labels (name: number), "
            "channel_names and file_ending as nnU-Net v2 writes them",
            "for a data set of the Medical Segmentation Decathlon or of nnU-Net v1, run "
            "nnUNetv2_convert_MSD_dataset or nnUNetv2_convert_old_nnUNet_dataset first",
        ) from error
    if num_channels != 1 or str(channel).upper() != "CT":
        hint = 'if the values are HU, write "channel_names": {"0": "CT"}'
        raise DataError(
            f"{path}: has the channels {channels}, expected one, CT",
            hint if num_channels == 1 else "",
        )
    if regions or "ignore" in labels:
        raise DataError(
            f"{path}: has the labels {labels}, expected one number for each and no ignore label",
            "map regions and ignored voxels to classes of their own or to the background",
        )
    if ending not in ENDINGS:
        raise DataError(f"{path}: file_ending is {ending!r}, expected one of {ENDINGS}")
    if sorted(labels.values()) != list(range(len(labels))):
        raise DataError(f"{path}: labels are {labels}, expected the numbers 0, 1, 2, ...")
    return description


def class_names(description: dict) -> tuple[str, ...]:
    labels = description["labels"]
    return tuple(sorted(labels, key=lambda name: labels[name]))


def listed_cases(listed: dict, path: pathlib.Path, config: ConfigDict) -> list[Case]:
    """The cases of `dataset.json` that lie where it says: `{name: {images: [file], label: file}}`."""
    try:
        files = {name: (*entry["images"], entry["label"]) for name, entry in listed.items()}
        pairs = {
            name: (path.parent / image, path.parent / label)
            for name, (image, label) in files.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: found no usable list under dataset ({error!r}), expected for each case images "
            "(one file) and label"
        ) from error
    return [volume_case(name, *pairs[name], config) for name in sorted(pairs, key=natural_order)]


def volume_cases(
    root: pathlib.Path, part: str, image_end: str, label_end: str, config: ConfigDict
) -> list[Case]:
    """The cases `images{part}/NAME{image_end}`, `labels{part}/NAME{label_end}`."""
    images, labels = root / f"images{part}", root / f"labels{part}"
    names: set[str] = set()
    for folder, end in ((images, image_end), (labels, label_end)):
        if not folder.is_dir():
            raise DataError(f"{folder} is not there")
        names |= set(file_names(folder, end))
    if not names:
        raise DataError(f"{labels} holds no labels (NAME{label_end})")
    return [
        volume_case(name, images / f"{name}{image_end}", labels / f"{name}{label_end}", config)
        for name in sorted(names, key=natural_order)
    ]


def volume_case(name: str, image: pathlib.Path, label: pathlib.Path, config: ConfigDict) -> Case:
    """The case of an image and its label; where one cannot be read it says so when it is loaded."""
    try:
        for path, other in ((image, label), (label, image)):
            if not path.is_file():
                raise DataError(f"{path} is not there, which {other} needs", "copy it anew")
        geometry, stamp = read_geometry(image), source_stamp(image, label)
    except DataError as error:
        return unusable_case(name, error)
    window = (config.window_level, config.window_width)
    load_fn = functools.partial(load_volume, image, label, len(config.classes), *window)
    return Case(name, name, geometry.shape[0], stamp, load_fn, geometry, (image, label))


def load_volume(
    image: pathlib.Path, label: pathlib.Path, num_classes: int, level: float, width: float
) -> Slices:
    """The slices of a CT and its labels. Raises DataError where the two do not lie on each other."""
    require_same_grid(image, label)
    hu = read_slices(image)
    if hu.dtype.kind == "f" and not np.isfinite(hu).all():
        raise DataError(f"{image}: holds NaN or infinite values", "export it anew")
    return window_hu(hu, level, width), read_labels(label, num_classes)


def require_same_grid(image: pathlib.Path, label: pathlib.Path) -> None:
    """Raises DataError where a label's voxels are not those of its image."""
    a, b = read_geometry(image), read_geometry(label)
    fix = "resample it onto the other (nibabel.processing.resample_from_to with order=0)"
    if a.file_shape != b.file_shape:
        raise DataError(
            f"{label}: has the shape {b.file_shape}, but {image} has {a.file_shape}", fix
        )
    differences = [
        f"{what} {y} instead of {x}"
        for what, x, y in (
            ("axes", a.file_axes, b.file_axes),
            ("a spacing of", round_mm(a.spacing_mm), round_mm(b.spacing_mm)),
        )
        if x != y
    ]
    off = distance_mm(a.affine, b.affine, a.file_shape)
    if off > MAX_OFF_VOXELS * min(a.spacing_mm):
        differences.append(f"voxels up to {off:.3g} mm off")
        raise DataError(
            f"{label}: lies elsewhere in space than {image}: {', '.join(differences)}", fix
        )


def round_mm(spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(x, 3) for x in spacing_mm)


def npy_cases(root: pathlib.Path, num_classes: int) -> Cases:
    """WORD as the published code packs it: uint8 slices `SPLIT/npy_imgs` and `SPLIT/npy_gts`."""
    cases = {}
    for split in ("train", "val", "test"):
        images, labels = root / split / "npy_imgs", root / split / "npy_gts"
        if split == "val" and not images.is_dir():
            continue
        found = file_names(images, ".npy") if images.is_dir() else []
        names = [f"{name}.npy" for name in sorted(found, key=natural_order)]
        if not names:
            raise DataError(f"{images} holds no slices (NAME.npy)")
        cases[split] = [npy_case(images / name, labels / name, num_classes) for name in names]
    return cases


def npy_case(image: pathlib.Path, label: pathlib.Path, num_classes: int) -> Case:
    if not label.is_file():
        missing = DataError(f"{label} is not there, which {image} needs", "copy it anew")
        return unusable_case(image.stem, missing)
    load_fn = functools.partial(load_npy, image, label, num_classes)
    return Case(image.stem, None, 1, source_stamp(image, label), load_fn, files=(image, label))


def load_npy(image: pathlib.Path, label: pathlib.Path, num_classes: int) -> Slices:
    """One slice. Raises DataError for anything but two uint8 arrays of one shape."""
    arrays = []
    for path in (image, label):
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable .npy ({error})", "copy it anew") from error
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
