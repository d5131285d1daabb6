"""Predicts the masks of CT volumes with a trained model.

    python -m usam_jax.predict -i CT.nii.gz -o MASK.nii.gz --checkpoint=WORKDIR
    python -m usam_jax.predict -i FOLDER -o FOLDER --checkpoint=WORKDIR --continue

CT: a NIfTI file (.nii, .nii.gz), a folder of DICOM slices, or a folder of either. The mask has the
voxels, axes, affine and header of its CT; MASK.json beside it names the classes. For DICOM the mask
may be MASK.dcm, a DICOM-SEG.
Prompts of one volume: --points=FILE.json ({"space": "voxel" or "world", "points": [{"at": [i, j, k],
"label": 1}]}) and --box=i0,j0,k0,i1,j1,k1. --carry takes them on to the slices above and below.

Exit code 4: some volumes of a folder could not be predicted; the others are written.
"""

import pathlib
import sys
import time
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from usam_jax import cli, logs, runtime
from usam_jax.data.dicom_seg import write_seg
from usam_jax.data.eval_prompts import trained_with
from usam_jax.errors import DataError, SomeFailed, UsageError
from usam_jax.files import write_json
from usam_jax.predict import volume_io
from usam_jax.predict.clicks import read_box, read_clicks
from usam_jax.predict.network import Network, load_network
from usam_jax.predict.slices import Options, keep_largest, predict_slices

INPUT = flags.DEFINE_string("input", None, "A volume, or a folder of them.", short_name="i")
OUTPUT = flags.DEFINE_string("output", None, "The mask, or a folder for them.", short_name="o")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run.")
POINTS = flags.DEFINE_string("points", None, "A points file (JSON) for the volume.")
BOX = flags.DEFINE_string("box", None, "i0,j0,k0,i1,j1,k1: voxels of two corners, from 0.")
CARRY = flags.DEFINE_bool("carry", False, "Carry the prompts to the slices above and below.")
SLICES = flags.DEFINE_list("slices", None, "A,B: only these slices, counted from the feet up.")
FLIP = flags.DEFINE_bool("flip", False, "Average with the prediction of the mirrored slice.")
LARGEST = flags.DEFINE_bool("largest", False, "Keep the largest connected part of each class.")
PROBABILITIES = flags.DEFINE_bool("save-probabilities", False, "NAME_probabilities.nii.gz too.")
REPORT = flags.DEFINE_string("report", None, "Where to write what was done (.json).")
CONTINUE = flags.DEFINE_bool("continue", False, "Skip volumes whose mask is there already.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Slices at once.", lower_bound=1)


def make_options() -> Options:
    """What the flags ask for. Raises UsageError for slices that are no range."""
    first, last = 0, None
    if SLICES.value:
        try:
            first, last = (int(x) for x in SLICES.value)
        except ValueError as error:
            raise UsageError(f"--slices={','.join(SLICES.value)}: expected A,B") from error
        if not 0 <= first <= last:
            raise UsageError(f"--slices={first},{last}: expected 0 <= A <= B")
    return Options(BATCH_SIZE.value, first, last, FLIP.value, CARRY.value, LARGEST.value)


def check_flags(several: bool) -> None:
    """Raises UsageError for flags that do not go together."""
    prompted = POINTS.value or BOX.value
    if several and prompted:
        raise UsageError("--points and --box are for one volume, found a folder of several")
    if CARRY.value and not prompted:
        raise UsageError("--carry needs --points or --box")


def predict_file(
    network: Network, path: pathlib.Path, out: pathlib.Path, options: Any
) -> dict[str, Any]:
    """Predicts one volume and writes its mask; what the report says of it."""
    start = time.monotonic()
    source = volume_io.read_source(path)
    if out.suffix == ".dcm" and not source.series:
        raise UsageError(f"-o {out}: a DICOM-SEG needs DICOM slices, found {path}")
    for note in source.series.notes if source.series else ():
        logs.say(f"{path}: {note}")
    warning = volume_io.doubt_values(source.hu)
    if warning:
        logs.say(f"warning: {path}: {warning}")
    clicks: dict[int, Any] = {}
    if POINTS.value:
        clicks |= read_clicks(pathlib.Path(POINTS.value), source.geometry)
    if BOX.value:
        for number, found in read_box(BOX.value, source.geometry).items():
            clicks[number] = clicks[number]._replace(box=found.box) if number in clicks else found
    if options.first >= len(source.hu):
        raise UsageError(
            f"--slices: begins at {options.first}, but {path} has {len(source.hu)} slices"
        )
    labels = np.zeros(source.hu.shape, np.uint8)
    probabilities = None
    if PROBABILITIES.value:
        probabilities = np.zeros((len(network.classes), *labels.shape), np.uint8)
    count = (
        min(len(labels), len(labels) if options.last is None else options.last + 1) - options.first
    )
    with logs.Progress(path.name, count, "slices") as bar:
        for done in predict_slices(
            network, source.hu, source.geometry, clicks, options, probabilities is not None
        ):
            labels[done.number] = done.labels
            if probabilities is not None and done.probabilities is not None:
                probabilities[:, done.number] = np.rint(255 * done.probabilities).transpose(2, 0, 1)
            bar.advance()
    if not labels.any():
        logs.say(f"{path}: nothing found")
    if options.largest:
        labels = keep_largest(labels, len(network.classes))
    prompts = f"{len(clicks)} slices with prompts" if clicks else "none (automatic)"
    if out.suffix == ".dcm" and source.series:
        write_seg(out, labels, source.series, network.classes, prompted=bool(clicks))
    else:
        volume_io.write_mask(out, source, labels)
        names = {name: i for i, name in enumerate(network.classes)}
        write_json(
            out.with_name(f"{volume_io.stem(out)}.json"),
            {
                "labels": names,
                "source": str(path),
                "checkpoint": CHECKPOINT.value,
                "checkpoint_step": network.step,
                "prompts": prompts + (", carried to their neighbours" if options.carry else ""),
            },
        )
    if probabilities is not None:
        name = f"{volume_io.stem(out)}_probabilities.nii.gz"
        volume_io.write_probabilities(out.with_name(name), source, probabilities)
    seconds = time.monotonic() - start
    spacing = np.prod(source.geometry.spacing_mm) / 1000
    volumes = {
        name: round(float((labels == i).sum() * spacing), 3)
        for i, name in enumerate(network.classes[1:], start=1)
    }
    return {
        "status": "done",
        "mask": str(out),
        "slices": count,
        "seconds": round(seconds, 2),
        "volume_ml": volumes,
        **({"warning": warning} if warning else {}),
    }


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """What the command line asks for."""
    if arguments or not (INPUT.value and OUTPUT.value and CHECKPOINT.value):
        raise UsageError(f"expected -i, -o and --checkpoint, found {arguments}\n{__doc__}")
    options = make_options()
    source, out = pathlib.Path(INPUT.value), pathlib.Path(OUTPUT.value)
    inputs = volume_io.find_inputs(source)
    several = source.is_dir() and list(inputs.values()) != [source]
    check_flags(several)
    volume_io.require_output(out, several)
    runtime.keep_compiled_programs()
    loaded = load_network(pathlib.Path(CHECKPOINT.value))
    if not (POINTS.value or BOX.value) and loaded.config["prompts"]["kind"] not in (
        "none",
        "mixed",
    ):
        trained = trained_with(loaded.config)
        logs.say(f"note: the model was trained with {trained}; without prompts it may find nothing")
    (out if several else out.parent).mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name, path in inputs.items():
        mask = out / f"{name}.nii.gz" if several else out
        if CONTINUE.value and mask.is_file():
            results[str(path)] = {"status": "skipped", "mask": str(mask)}
            continue
        try:
            results[str(path)] = predict_file(loaded, path, mask, options)
        except DataError as error:
            if not several:
                raise
            logs.say(f"error: {error}")
            results[str(path)] = {"status": "failed", "error": str(error)}
    if REPORT.value:
        write_json(pathlib.Path(REPORT.value), {"checkpoint": CHECKPOINT.value, "volumes": results})
    failed = [path for path, x in results.items() if x["status"] == "failed"]
    if failed:
        raise SomeFailed(f"{len(failed)} of {len(results)} volumes failed: {', '.join(failed)}")
    skipped = sum(x["status"] == "skipped" for x in results.values())
    logs.say(f"{out}: {len(results) - skipped} predicted, {skipped} there already")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, needs_config=False))
