"""Prediction of one volume: its mask, probabilities and entry in the report."""

import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from usam_jax.io.dicom_seg import check_seg, write_seg
from usam_jax.io.nifti import header_warning
from usam_jax.predict import output
from usam_jax.predict.clicks import read_box, read_clicks
from usam_jax.predict.model import Clicks, Network
from usam_jax.predict.output import Source
from usam_jax.predict.output_paths import class_list_path, nifti_path, probabilities_path
from usam_jax.predict.slices import Options, keep_largest, predict_slices
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, UsageError
from usam_jax.utils.files import write_json


class Request(NamedTuple):
    """Options and prompts for the prediction of a volume.

    `points` is the path of a points file, `box` the text `i0,j0,k0,i1,j1,k1`; `probabilities` are
    written if true. `series` is the DICOM series of a folder that holds several.
    """

    options: Options
    points: str | None = None
    box: str | None = None
    probabilities: bool = False
    series: str | None = None


def read_prompts(
    request: Request, source: Source, numbers: range, network: Network
) -> dict[int, Clicks]:
    """Return the prompts of a volume by slice.

    Raises UsageError if a prompt is on none of the slices `numbers`, or a slice gets two boxes.
    """
    clicks: dict[int, Clicks] = {}
    if request.points:
        classes = network.classes if network.interactive else ()
        clicks = read_clicks(pathlib.Path(request.points), source.geometry, classes)
    if request.box:
        for number, boxed in read_box(request.box, source.geometry).items():
            given = clicks.get(number, boxed)
            if given is not boxed and given.box is not None:
                raise UsageError(f"--box: slice {number} has a box in {request.points} already")
            clicks[number] = given._replace(box=boxed.box)
    outside = sorted(set(clicks) - set(numbers))
    if outside:
        raise UsageError(
            f"prompts on slice {outside[0]} of {source.path}, but --slices asks for "
            f"{numbers.start} to {numbers.stop - 1}"
        )
    return clicks


def find_warnings(source: Source) -> list[str]:
    """Return warnings about the header and the values of a volume."""
    notes = list(source.series.notes) if source.series else [header_warning(source.path)]
    return [x for x in (*notes, output.values_warning(source.hu)) if x]


def predict_volume(
    network: Network, path: pathlib.Path, mask: pathlib.Path, request: Request
) -> dict[str, Any]:
    """Predict a volume, write its outputs, the mask last, and return its entry in the report.

    Raises DataError if the volume cannot be used, and UsageError if prompts or the output do not
    fit the volume.
    """
    start, options = time.monotonic(), request.options
    source = output.read_source(path, request.series)
    count = len(source.hu)
    if mask.suffix == ".dcm" and not source.series:
        raise UsageError(f"-o {mask}: got the input {path}, expected DICOM slices for a DICOM-SEG")
    if options.first >= count:
        raise DataError(f"{path}: has {count} slices, but --slices starts at {options.first}")
    numbers = range(count)[options.first : None if options.last is None else options.last + 1]
    warnings = find_warnings(source)
    if mask.suffix == ".dcm" and source.series:
        warnings += check_seg(source.series, network.classes)
    for warning in warnings:
        console.info(f"warning: {path}: {warning}")
    clicks = read_prompts(request, source, numbers, network)
    labels = np.zeros(source.hu.shape, np.uint8)
    spread = None
    if request.probabilities:
        spread = np.zeros((len(network.classes), *labels.shape), np.uint8)
        spread[0] = 255  # Slices that are not predicted are background.
    predicted = 0
    with console.Progress(path.name, len(numbers), "slices") as bar:
        for done in predict_slices(
            network, source.hu, source.geometry, clicks, options, request.probabilities
        ):
            labels[done.number] = done.labels
            if spread is not None and done.probabilities is not None:
                spread[:, done.number] = np.rint(255 * done.probabilities).transpose(2, 0, 1)
            predicted += 1
            bar.advance()
    if options.keep_largest:
        labels = keep_largest(labels, len(network.classes))
    if not labels.any():
        warnings.append("nothing found")
        console.info(f"{path}: nothing found")
    if spread is not None:
        output.write_probabilities(probabilities_path(mask), source, spread)
    write_mask(network, source, mask, labels, clicks, options)
    ml = float(np.prod(source.geometry.spacing_mm)) / 1000
    names = enumerate(network.classes[1:], start=1)
    entry = {
        "status": "done",
        "mask": str(mask),
        "slices": predicted,
        "seconds": round(time.monotonic() - start, 2),
        "volume_ml": {name: round(float((labels == i).sum()) * ml, 3) for i, name in names},
        "warnings": warnings,
    }
    if source.series:
        unknown = [str(x) for x in source.series.unknown]
        entry |= {"series": source.series.uid, "left_out": unknown}
    return entry


def write_mask(
    network: Network,
    source: Source,
    mask: pathlib.Path,
    labels: np.ndarray,
    clicks: dict[int, Clicks],
    options: Options,
) -> None:
    """Write the mask, for NIfTI after a JSON file with the names of its classes.

    Raises DataError if it cannot be written as a DICOM-SEG; it is then kept as NIfTI.
    """
    if mask.suffix == ".dcm" and source.series:
        try:
            write_seg(mask, labels, source.series, network.classes, prompted=bool(clicks))
        except (DataError, OSError) as error:
            kept = nifti_path(mask)
            write_mask(network, source, kept, labels, clicks, options)
            raise DataError(f"{mask}: {error}. The mask is kept as {kept}") from error
        return
    prompts = f"on slices {sorted(clicks)}" if clicks else "none (automatic)"
    about = {
        "labels": {name: i for i, name in enumerate(network.classes)},
        "source": source.path.name,
        "checkpoint_step": network.step,
        "prompts": prompts + (", propagated to their neighbours" if options.propagate else ""),
    }
    write_json(class_list_path(mask), about)
    output.write_mask(mask, source, labels)
