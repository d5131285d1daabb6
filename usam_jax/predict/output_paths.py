"""Every file that a prediction writes, and how an earlier one of its kind is recognised."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from usam_jax.io.cohort import PROBABILITIES
from usam_jax.io.nifti_file import read_raw_header
from usam_jax.io.volume_files import PAIR_ENDINGS, volume_ending, volume_name
from usam_jax.utils.errors import DataError, reading
from usam_jax.utils.files import read_json
from usam_jax.utils.outputs import Output, is_json_with

PROBABILITY_STEP = 1 / 255
FIX = "Move it, or give another -o."

is_class_list = is_json_with("labels", "source", "checkpoint_step", "prompts")


def is_report(path: pathlib.Path) -> bool:
    """Whether a file is a report of this program: an entry for each volume."""
    if not is_json_with("checkpoint", "volumes")(path):
        return False
    volumes = read_json(path)["volumes"]
    return isinstance(volumes, dict) and all(isinstance(x, dict) for x in volumes.values())


def class_list_path(mask: pathlib.Path) -> pathlib.Path:
    """The JSON file next to a mask that names its classes."""
    return mask.with_name(f"{volume_name(mask)}.json")


def probabilities_path(mask: pathlib.Path) -> pathlib.Path:
    """The probabilities that belong to a mask."""
    return mask.with_name(f"{volume_name(mask)}{PROBABILITIES}.nii.gz")


def nifti_path(mask: pathlib.Path) -> pathlib.Path:
    """The NIfTI file that keeps a mask if it cannot be written as a DICOM-SEG."""
    return mask.with_name(f"{volume_name(mask)}.nii.gz")


def is_probabilities(path: pathlib.Path) -> bool:
    """Whether a file holds probabilities as `write_probabilities` writes them."""
    try:
        with reading(path):
            header = read_raw_header(path, is_pair=False)
    except DataError:
        return False
    is_uint8 = header.get_data_dtype() == np.uint8 and len(header.get_data_shape()) == 4
    return is_uint8 and abs(float(header["scl_slope"]) - PROBABILITY_STEP) < 1e-6


def has_class_list(mask: pathlib.Path) -> bool:
    """Whether this program wrote a mask, which it does after the mask's class list."""
    return is_class_list(class_list_path(mask))


def outputs_of(mask: pathlib.Path, is_named: bool, probabilities: bool) -> list[Output]:
    """The files of one volume: mask, class list and, if asked for, probabilities.

    `is_named` says whether the user named the mask, which may then replace any file.
    """
    outputs = [Output(mask, "a mask", FIX, None if is_named else has_class_list)]
    if mask.suffix == ".dcm":
        outputs.append(Output(nifti_path(mask), "a mask", FIX, has_class_list))
    outputs.append(Output(class_list_path(mask), "a list of classes", FIX, is_class_list))
    if probabilities:
        outputs.append(Output(probabilities_path(mask), "probabilities", FIX, is_probabilities))
    return outputs


def report_output(path: pathlib.Path) -> Output:
    """The report of all volumes."""
    return Output(path, "a report", "Give another --report.", is_report)


def files_of(sources: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """All files of volumes: both of an .hdr/.img pair, and those in the folder of a series."""
    files: list[pathlib.Path] = []
    for source in sources:
        files.append(source)
        if source.is_dir():
            files += [x for x in source.iterdir() if x.is_file()]
        elif (volume_ending(source) or "").lower() in PAIR_ENDINGS:
            name = volume_name(source)
            files += [x for x in source.parent.iterdir() if volume_name(x) == name]
    return files


def is_done(mask: pathlib.Path, probabilities: bool) -> bool:
    """Whether all outputs of a volume exist, of which the mask is written last."""
    return mask.is_file() and (not probabilities or probabilities_path(mask).is_file())


def planned_outputs(
    masks: Mapping[str, pathlib.Path], is_named: bool, probabilities: bool, skip_existing: bool
) -> list[Output]:
    """The files that a command will write for masks by name, without those that it skips."""
    todo = [x for x in masks.values() if not (skip_existing and is_done(x, probabilities))]
    return [output for mask in todo for output in outputs_of(mask, is_named, probabilities)]
