"""Prediction of one volume: its mask, probabilities and entry in the report."""

import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from usam_jax.data.prompts import replaced
from usam_jax.io.dicom_seg import check_seg
from usam_jax.predict import output
from usam_jax.predict.clicks import read_box, read_clicks
from usam_jax.predict.in_turn import with_previous
from usam_jax.predict.model import Clicks, Network
from usam_jax.predict.output import Source
from usam_jax.predict.output_paths import probabilities_path
from usam_jax.predict.predictor import Predictor
from usam_jax.predict.slices import Options, encode_one, keep_largest, predict_slices
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, UsageError


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
    """Return the prompts of a volume by slice. Clicks that name a class count in turn.

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
    return predict_before_last(clicks, source, network) if network.interactive else clicks


def predict_before_last(
    clicks: dict[int, Clicks], source: Source, network: Network
) -> dict[int, Clicks]:
    """Return the clicks with the prediction before the last of each slice.

    Says which clicks a later one on the same pixel of the input replaces.
    """
    _, *pixel = source.geometry.spacing_mm
    pixel_mm, shape = (pixel[0], pixel[1]), (source.hu.shape[1], source.hu.shape[2])
    predictor, found = Predictor(network), dict(clicks)
    pointed = {i: x for i, x in clicks.items() if len(x.point_labels)}
    if not pointed:
        return found
    with console.Progress("clicks in turn", len(pointed), "slices") as bar:
        for i, given in pointed.items():
            encoded = encode_one(network, source.hu, i, pixel_mm)
            found[i] = with_previous(predictor, encoded, given)
            pixels = network.preparation.pixels_in(given.points_xy, shape, pixel_mm)
            for number in (1 + np.flatnonzero(replaced(pixels))).tolist():
                console.info(
                    f"slice {i}: point {number} of its {len(pixels)} is replaced by a later one on the same "
                    "pixel of the model's input"
                )
            bar.advance()
    return found


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
    warnings = output.find_warnings(source)
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
    output.write_labels(mask, source, labels, describe(network, clicks, options))
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


def describe(network: Network, clicks: dict[int, Clicks], options: Options) -> output.Labelling:
    """What the outputs say about the labels of a volume."""
    prompts = f"on slices {sorted(clicks)}" if clicks else "none (automatic)"
    prompts += ", propagated to their neighbours" if options.propagate else ""
    return output.Labelling(network.classes, network.step, prompts, bool(clicks))
