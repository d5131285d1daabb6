"""Score a folder of predicted label volumes against their references, without a model."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from usam_jax.data.case import natural_order
from usam_jax.data.class_names import require_class_names
from usam_jax.evaluation.case_metrics import Scoring, score_case
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.class_labels import find_classes
from usam_jax.evaluation.summary import summarise
from usam_jax.io.cohort import EMPTY, PROBABILITIES, Cohort, describe_left_out, find_cohort
from usam_jax.io.dataset_json import CHANNEL
from usam_jax.io.nifti import header_warnings, read_geometry, read_labels, require_same_grid
from usam_jax.io.volume_files import EXPECTED
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, list_some
from usam_jax.utils.parallel import ordered_map

MAX_LISTED = 200


def find_volumes(folder: pathlib.Path) -> Cohort:
    """The volumes of a folder, and of those below it, by the name of their case.

    Raises DataError if there are none, or if two have the same name.
    """
    found = find_cohort(folder, with_series=False)
    if not found.volumes:
        raise DataError(f"{folder}: holds no label volumes, expected {EXPECTED}")
    if found.twins:
        twice = [f"{one} and {other}" for one, other in found.twins]
        raise DataError(
            f"{folder}: holds {len(twice)} cases twice:\n{list_some(twice)}\n"
            "Remove one file of each."
        )
    left_out = {path: reason for path, reason in found.left_out.items() if reason != EMPTY}
    return found._replace(left_out=left_out)


def name_predictions(
    predictions: dict[str, pathlib.Path], references: dict[str, pathlib.Path]
) -> dict[str, pathlib.Path]:
    """The predictions under the names of their references, without probabilities next to masks.

    A mask of the image NAME_0000 belongs to the case NAME, as in nnU-Net.
    """
    named: dict[str, pathlib.Path] = {}
    for name, path in predictions.items():
        if name.endswith(PROBABILITIES) and name.removesuffix(PROBABILITIES) in predictions:
            continue
        case = name.removesuffix(CHANNEL)
        is_channel = name not in references and case in references and case not in predictions
        named[case if is_channel else name] = path
    return named


def find_unpaired(
    predictions: dict[str, pathlib.Path], references: dict[str, pathlib.Path]
) -> list[str]:
    """One line for each prediction without a reference and each reference without a prediction."""
    missing = sorted(references.keys() - predictions.keys(), key=natural_order)
    unknown = sorted(predictions.keys() - references.keys(), key=natural_order)
    return [
        f"{references[x]}: has no prediction of that name; predict it, or remove the reference"
        for x in missing
    ] + [
        f"{predictions[x]}: has no reference of that name; remove it, or add its reference"
        for x in unknown
    ]


def read_pair(
    prediction: pathlib.Path, reference: pathlib.Path, num_classes: int
) -> tuple[list[np.ndarray], list[str]]:
    """The labels uint8[n h w] of both files, prediction first, and all faults of the files.

    Both are reoriented by the affine of the reference.
    """
    labels: list[np.ndarray] = []
    faults: list[str] = []
    affine = None
    try:
        affine = require_same_grid(reference, prediction).affine
    except DataError as error:
        faults.append(str(error))
    for path in (prediction, reference):
        try:
            labels.append(read_labels(path, num_classes, affine))
        except DataError as error:
            faults.append(str(error))
    return labels, list(dict.fromkeys(faults))


def score_folder(
    predictions: pathlib.Path, references: pathlib.Path, scoring: Scoring
) -> dict[str, Any]:
    """Score each case in 3-D on the voxels of its files and return the summary.

    Patients are not known, so the intervals are over cases. The summary's `left_out` lists files that
    are not label volumes by their names, and `warnings` doubts about headers. Raises DataError with
    all faults of all files.
    """
    found, (truths, others, _) = find_volumes(predictions), find_volumes(references)
    predicted = name_predictions(found.volumes, truths)
    left_out = describe_left_out(found.left_out | others)
    faults = find_unpaired(predicted, truths)
    names = sorted(predicted.keys() & truths.keys(), key=natural_order)
    results: list[CaseResult] = []

    def score(name: str) -> CaseResult | list[str]:
        files = predicted[name], truths[name]
        labels, wrong = read_pair(*files, len(scoring.classes))
        if wrong or faults:  # after the first fault, read the other files only to list theirs
            return wrong
        spacing = read_geometry(files[1]).spacing_mm
        scores = score_case(labels[1], labels[0], spacing, scoring)
        return CaseResult(name, None, str(files[1]), str(files[0]), scores)

    with console.Progress("scoring", len(names), "cases") as bar:
        for _, result in ordered_map(score, names):
            bar.advance()
            if isinstance(result, list):
                faults += result
            else:
                results.append(result)
    if faults:
        raise DataError(
            f"{predictions} cannot be scored against {references}; found {len(faults)} faults:\n"
            f"{list_some(faults, MAX_LISTED)}"
        )
    warnings = header_warnings(x for name in names for x in (predicted[name], truths[name]))
    if warnings:
        console.info(f"{len(warnings)} files have doubtful headers:\n{list_some(warnings)}")
    summary = summarise(results, scoring, in_mm=True)
    return summary | {"left_out": left_out, "warnings": warnings}


def make_scoring(classes: tuple[str, ...], tolerance_mm: float, policy: str) -> Scoring:
    """One tolerance for all classes. Raises UsageError for class names that cannot be used."""
    require_class_names(classes, "--classes")
    return Scoring(classes, (tolerance_mm,) * (len(classes) - 1), policy)


def score(
    predictions: pathlib.Path,
    references: pathlib.Path,
    classes: Sequence[str] | None = None,
    tolerance_mm: float = 2.0,
    policy: str = "worst",
) -> dict[str, Any]:
    """Score a folder of predictions (NIfTI) and return its summary.

    Without `classes` they are read by `find_classes`. `tolerance_mm` is that of NSD; `policy` is
    one of `case_metrics.POLICIES`. Raises UsageError for classes that are unknown or cannot be
    used, and DataError with all faults of all files.
    """
    names = tuple(classes or find_classes(predictions, references))
    return score_folder(predictions, references, make_scoring(names, tolerance_mm, policy))
