"""Predicts the masks of CT volumes with a trained model.

    python -m usam_jax.predict -i CT.nii.gz -o MASK.nii.gz --checkpoint=WORKDIR
    python -m usam_jax.predict -i FOLDER -o FOLDER --checkpoint=WORKDIR --skip_existing

CT: a NIfTI file (.nii, .nii.gz), a folder of DICOM slices, or a folder of either. The mask has the
voxels, axes, affine and header of its CT; MASK.json beside it names the classes. For DICOM the mask
may be MASK.dcm, a DICOM-SEG.
Prompts of one volume: --points=FILE.json ({"space": "voxel" or "world", "points": [{"at": [i, j, k],
"label": 1}]}) and --box=i0,j0,k0,i1,j1,k1. --propagate takes them on to the slices above and below.

Exit code 4: some volumes of a folder could not be predicted; the others are written.
"""

import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from usam_jax.data.prompt_modes import trained_with
from usam_jax.predict import output
from usam_jax.predict.model import Network, load_network
from usam_jax.predict.slices import Options
from usam_jax.predict.volume import Request, predict_volume, probabilities_path
from usam_jax.utils import cli, console, runtime
from usam_jax.utils.errors import DataError, SomeFailed, UsageError
from usam_jax.utils.files import read_json, require_folder, write_json

INPUT = flags.DEFINE_string("input", None, "A volume, or a folder of them.", short_name="i")
OUTPUT = flags.DEFINE_string("output", None, "The mask, or a folder for them.", short_name="o")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run.")
POINTS = flags.DEFINE_string("points", None, "A points file (JSON) for the volume.")
BOX = flags.DEFINE_string("box", None, "i0,j0,k0,i1,j1,k1: voxels of two corners, from 0.")
PROPAGATE = flags.DEFINE_bool(
    "propagate", False, "Propagate the prompts to the slices above and below."
)
SLICES = flags.DEFINE_list("slices", None, "A,B: only these slices, counted from the feet up.")
TTA = flags.DEFINE_enum(
    "tta", None, ["flip"], "Test-time augmentation: flip averages with the mirrored slice."
)
KEEP_LARGEST = flags.DEFINE_bool(
    "keep_largest", False, "Keep the largest connected part of each class."
)
PROBABILITIES = flags.DEFINE_bool("save-probabilities", False, "NAME_probabilities.nii.gz too.")
REPORT = flags.DEFINE_string("report", None, "Where to write what was done (.json).")
SKIP_EXISTING = flags.DEFINE_bool(
    "skip_existing", False, "Skip volumes whose mask is there already."
)
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
    return Options(
        BATCH_SIZE.value, first, last, TTA.value == "flip", PROPAGATE.value, KEEP_LARGEST.value
    )


def check_flags(several: bool) -> None:
    """Raises UsageError for flags that do not go together."""
    prompted = POINTS.value or BOX.value
    if several and prompted:
        raise UsageError("--points and --box are for one volume, found a folder of several")
    if PROPAGATE.value and not prompted:
        raise UsageError("--propagate needs --points or --box")


def check_outputs(inputs: dict[str, pathlib.Path], masks: dict[str, pathlib.Path]) -> None:
    """Raises UsageError where an output would take the place of an input."""
    read = {path.resolve() for path in inputs.values()}
    for mask in masks.values():
        for path in (mask, probabilities_path(mask)):
            if path.resolve() in read:
                raise UsageError(f"-o: {path} is a CT to predict; give another file or folder")


def check_report(path: pathlib.Path) -> None:
    """Raises UsageError where a report could not be written, before any time is spent."""
    if path.is_dir() or path.suffix != ".json":
        raise UsageError(f"--report={path}: expected FILE.json")
    require_folder(path.parent)


def note_prompts(network: Network) -> None:
    """Says where a model was trained with other prompts than it gets."""
    kind, given = network.config["prompts"]["kind"], bool(POINTS.value or BOX.value)
    if network.promptable and kind != "mixed" and given == (kind == "none"):
        trained = trained_with(network.config)
        what = "with" if given else "without"
        console.info(
            f"note: the model was trained with the prompts: {trained}; it is used {what} any"
        )


def is_done(mask: pathlib.Path) -> bool:
    """If a volume's outputs are there; the mask is written last."""
    return mask.is_file() and (not PROBABILITIES.value or probabilities_path(mask).is_file())


def predict_all(
    network: Network,
    inputs: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    request: Request,
) -> dict[str, Any]:
    """Predicts what is not there yet; the report's entry of each volume.

    With several volumes a bad one is told and left out. The report is written in any case.
    """
    report = pathlib.Path(REPORT.value) if REPORT.value else None
    earlier = read_json(report).get("volumes", {}) if report and SKIP_EXISTING.value else {}
    results: dict[str, Any] = {}
    try:
        for name, path in inputs.items():
            entry = earlier.get(str(path), {"mask": str(masks[name])})
            if SKIP_EXISTING.value and is_done(masks[name]):
                results[str(path)] = entry | {"status": "there already"}
                continue
            try:
                results[str(path)] = predict_volume(network, path, masks[name], request)
            except DataError as error:
                results[str(path)] = {"status": "failed", "error": str(error)}
                if len(inputs) == 1:
                    raise
                console.info(f"error: {error}")
    finally:
        if report:
            write_json(report, {"checkpoint": CHECKPOINT.value, "volumes": results})
    return results


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """What the command line asks for."""
    if arguments or not (INPUT.value and OUTPUT.value and CHECKPOINT.value):
        raise UsageError(f"expected -i, -o and --checkpoint, found {arguments}\n{__doc__}")
    request = Request(make_options(), POINTS.value, BOX.value, PROBABILITIES.value)
    source, out = pathlib.Path(INPUT.value), pathlib.Path(OUTPUT.value)
    inputs = output.find_inputs(source)
    several = list(inputs.values()) != [source]  # a folder that is no series itself
    check_flags(several)
    output.require_output(out, several)
    masks = {name: out / f"{name}.nii.gz" if several else out for name in inputs}
    check_outputs(inputs, masks)
    if REPORT.value:
        check_report(pathlib.Path(REPORT.value))
    runtime.enable_compilation_cache()
    network = load_network(pathlib.Path(CHECKPOINT.value))
    if POINTS.value or BOX.value:
        network.require_promptable("--points and --box")
    note_prompts(network)
    require_folder(out if several else out.parent)
    results = predict_all(network, inputs, masks, request)
    failed = [path for path, x in results.items() if x["status"] == "failed"]
    if failed:
        raise SomeFailed(f"{len(failed)} of {len(results)} volumes failed: {', '.join(failed)}")
    done = sum(x["status"] == "done" for x in results.values())
    console.info(f"{out}: {done} predicted, {len(results) - done} there already")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, needs_config=False))
