"""nnU-Net's `dataset.json`: classes, channel and file ending of a data set of CT volumes."""

import pathlib
from typing import Any

from usam_jax.io.volume_files import ITK_ENDINGS, NIFTI_ENDINGS
from usam_jax.utils.errors import DataError
from usam_jax.utils.files import load_json

NAME = "dataset.json"
ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
CHANNEL = "_0000"  # NAME_0000 is the image of the first channel of the case NAME


def read_description(path: pathlib.Path) -> dict[str, Any]:
    """Read a `dataset.json`. Raises DataError if it is missing or does not describe CT volumes."""
    if not path.exists():
        raise DataError(f"{path} is not there, expected nnU-Net's description")
    description = load_json(path)
    try:
        labels = description["labels"]
        regions = [name for name, value in labels.items() if not isinstance(value, int)]
        channels = description["channel_names"]
        ending = description["file_ending"]
        num_channels, channel = len(channels), next(iter(channels.values()))
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(
            f"{path}: got no usable description ({error!r}), expected labels (name: number), "
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
    if str(ending).lower() not in ENDINGS:
        raise DataError(f"{path}: file_ending is {ending!r}, expected one of {ENDINGS}")
    if sorted(labels.values()) != list(range(len(labels))):
        raise DataError(f"{path}: labels are {labels}, expected the numbers 0, 1, 2, ...")
    return description


def class_names(description: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes in the order of their labels, background first."""
    labels = description["labels"]
    return tuple(sorted(labels, key=lambda name: labels[name]))


def listed_files(
    description: dict[str, Any], path: pathlib.Path
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """Image and label of each case that is listed under `dataset`, by name.

    Entries are `{name: {images: [file], label: file}}`, relative to the folder of `path`. Raises
    DataError for another form.
    """
    try:
        entries = description.get("dataset") or {}
        files = {name: (*entry["images"], entry["label"]) for name, entry in entries.items()}
        return {
            name: (path.parent / image, path.parent / label)
            for name, (image, label) in files.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: got no usable list under dataset ({error!r}), expected for each case "
            "images (one file) and label"
        ) from error
