"""Predict the masks of CT volumes with a trained model.

    python -m usam_jax.predict -i CT.nii.gz -o MASK.nii.gz --checkpoint=WORKDIR
    python -m usam_jax.predict -i FOLDER -o FOLDER --checkpoint=WORKDIR --skip_existing

The input is a volume (.nii.gz, .nii, .mha, .nrrd, .hdr with .img), a folder of DICOM slices, or a
folder with either at any depth. The mask has the voxels, axes, affine and header of its CT;
MASK.json next to it names the classes. For a DICOM input the mask may also be MASK.dcm, a DICOM-SEG.
Of several DICOM series in one folder, --series chooses one.
Prompts for one volume: --points=FILE.json ({"space": "voxel" or "world", "points": [{"at": [i, j,
k], "label": 1}]}) and --box=i0,j0,k0,i1,j1,k1. --propagate propagates them to the slices above and
below.

Exit code 4: some volumes of a folder could not be predicted, or some of its files and folders were
left out because they are not volumes; the masks of the others are written.
"""

import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from usam_jax.data.prompt_modes import trained_with
from usam_jax.io.cohort import describe_count, describe_left_out
from usam_jax.predict import output, output_paths
from usam_jax.predict.model import Network, load_network
from usam_jax.predict.output_paths import is_done
from usam_jax.predict.slices import Options
from usam_jax.predict.volume import Request, predict_volume
from usam_jax.utils import cli, console, runtime
from usam_jax.utils.errors import DataError, SomeFailed, UsageError
from usam_jax.utils.files import read_json, require_folder, write_json
from usam_jax.utils.outputs import check_outputs

INPUT = flags.DEFINE_string("input", None, "A volume, or a folder of volumes.", short_name="i")
OUTPUT = flags.DEFINE_string("output", None, "The mask, or a folder for the masks.", short_name="o")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run.")
POINTS = flags.DEFINE_string("points", None, "Points and boxes for the volume (.json).")
BOX = flags.DEFINE_string("box", None, "i0,j0,k0,i1,j1,k1: two corners in voxels, from 0.")
PROPAGATE = flags.DEFINE_bool(
    "propagate", False, "Propagate the prompts to the slices above and below."
)
SLICES = flags.DEFINE_list("slices", None, "A,B: only slices A to B, from the feet up.")
TTA = flags.DEFINE_enum(
    "tta", None, ["flip"], "Test-time augmentation: flip averages with the mirrored slice."
)
KEEP_LARGEST = flags.DEFINE_bool(
    "keep_largest", False, "Keep the largest connected component of each class."
)
PROBABILITIES = flags.DEFINE_bool(
    "save-probabilities", False, "Also write NAME_probabilities.nii.gz."
)
SERIES = flags.DEFINE_string(
    "series", None, "UID, number or description of the DICOM series, if a folder holds several."
)
REPORT = flags.DEFINE_string("report", None, "Report of all volumes (.json).")
SKIP_EXISTING = flags.DEFINE_bool("skip_existing", False, "Skip volumes whose mask exists.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Slices per batch.", lower_bound=1)


def make_options() -> Options:
    """Return the options that the flags give. Raises UsageError if --slices is not a range."""
    first, last = 0, None
    if SLICES.value:
        try:
            first, last = (int(x) for x in SLICES.value)
        except ValueError as error:
            raise UsageError(f"--slices: got {','.join(SLICES.value)}, expected A,B") from error
        if not 0 <= first <= last:
            raise UsageError(f"--slices: got {first},{last}, expected 0 <= A <= B")
    return Options(
        BATCH_SIZE.value, first, last, TTA.value == "flip", PROPAGATE.value, KEEP_LARGEST.value
    )


def check_flags(inputs: Iterable[pathlib.Path], several: bool) -> None:
    """Raise UsageError if flags contradict each other or do not fit the (`several`) inputs."""
    prompted = POINTS.value or BOX.value
    if several and prompted:
        raise UsageError("--points, --box: got a folder of several volumes, expected one volume")
    if PROPAGATE.value and not prompted:
        raise UsageError("--propagate: got no prompts, expected --points or --box")
    if SERIES.value and not any(x.is_dir() for x in inputs):
        raise UsageError("--series: got no DICOM series as input, expected one")


def check_all_outputs(
    source: pathlib.Path,
    out: pathlib.Path,
    inputs: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
) -> None:
    """Raise UsageError if an output, such as a class list, would replace a file of the user."""
    is_named = list(masks.values()) == [out]
    outputs = output_paths.planned_outputs(
        masks, is_named, PROBABILITIES.value, SKIP_EXISTING.value
    )
    if REPORT.value:
        check_report(pathlib.Path(REPORT.value))
        outputs.append(output_paths.report_output(pathlib.Path(REPORT.value)))
    read = output_paths.files_of({source, *inputs.values()})
    points = {pathlib.Path(POINTS.value): "the points file"} if POINTS.value else {}
    check_outputs(outputs, dict.fromkeys(read, "a CT to predict") | points)


def check_report(path: pathlib.Path) -> None:
    """Raise UsageError if the report cannot be written, before any prediction."""
    if path.is_dir() or path.suffix != ".json":
        raise UsageError(f"--report: got {path}, expected FILE.json")
    require_folder(path.parent)


def note_prompts(network: Network) -> None:
    """Print a note if a model trained with prompts gets none, or the reverse."""
    kind, given = network.config["prompts"]["kind"], bool(POINTS.value or BOX.value)
    if network.promptable and kind not in ("mixed", "interactive") and given == (kind == "none"):
        trained = trained_with(network.config)
        what = "with" if given else "without"
        console.info(f"note: the model is used {what} prompts, but was trained with: {trained}")


def unread_slices(entry: dict[str, Any]) -> dict[pathlib.Path, str]:
    """The files among the slices of a volume that may be damaged slices, with the reason."""
    return {
        pathlib.Path(x): "lies among slices, but is not DICOM" for x in entry.get("left_out", ())
    }


def warn_of_twin(path: pathlib.Path, entry: dict[str, Any], others: dict[str, Any]) -> None:
    """Add a warning to the entry of a series if another folder holds slices of the same series."""
    uid = entry.get("series")
    if twin := next((x for x, other in others.items() if uid and other.get("series") == uid), None):
        warning = f"the slices are of the same series as those in {twin}: a copy, or a part of it?"
        entry["warnings"].append(warning)
        console.info(f"warning: {path}: {warning}")


def predict_all(
    network: Network,
    inputs: dict[str, pathlib.Path],
    masks: dict[str, pathlib.Path],
    request: Request,
    left_out: dict[pathlib.Path, str],
) -> dict[str, Any]:
    """Predict all volumes, and return each one's entry in the report by path.

    The report also has the files and folders that were left out, `left_out`, to which files among the
    slices of a series that are not DICOM are added. --skip_existing skips volumes whose outputs exist. If one of several volumes
    cannot be predicted, its error is printed and the others are predicted; the error of a single
    volume is raised. The report is written in any case.
    """
    report = pathlib.Path(REPORT.value) if REPORT.value else None
    earlier = read_json(report).get("volumes", {}) if report and SKIP_EXISTING.value else {}
    results: dict[str, Any] = {}
    try:
        for name, path in inputs.items():
            entry = earlier.get(str(path), {"mask": str(masks[name])})
            if SKIP_EXISTING.value and is_done(masks[name], PROBABILITIES.value):
                results[str(path)] = entry | {"status": "there already"}
                left_out |= unread_slices(entry)
                continue
            require_folder(masks[name].parent)
            try:
                entry = predict_volume(network, path, masks[name], request)
                warn_of_twin(path, entry, results)
                results[str(path)] = entry
                left_out |= unread_slices(entry)
            except DataError as error:
                results[str(path)] = {"status": "failed", "error": str(error)}
                if len(inputs) == 1:
                    raise
                console.info(f"error: {error}")
    finally:
        if report:
            reasons = {str(path): reason for path, reason in left_out.items()}
            content = {"checkpoint": CHECKPOINT.value, "volumes": results, "left_out": reasons}
            write_json(report, content)
    return results


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """Predict as the flags say."""
    if arguments or not (INPUT.value and OUTPUT.value and CHECKPOINT.value):
        raise UsageError(
            f"expected -i, -o, --checkpoint and flags alone, got {arguments}\n{__doc__}"
        )
    request = Request(make_options(), POINTS.value, BOX.value, PROBABILITIES.value, SERIES.value)
    source, out = pathlib.Path(INPUT.value), pathlib.Path(OUTPUT.value)
    output.require_elsewhere(out, source)
    inputs, left_out, _ = output.find_inputs(source, out)
    several = list(inputs.values()) != [source]  # a folder that is not a series itself
    check_flags(inputs.values(), several)
    output.require_output(out, several)
    masks = {name: out / f"{name}.nii.gz" if several else out for name in inputs}
    check_all_outputs(source, out, inputs, masks)
    for line in describe_left_out(left_out):
        console.info(f"left out: {line}")
    runtime.enable_compilation_cache()
    runtime.start_devices()
    network = load_network(pathlib.Path(CHECKPOINT.value))
    if POINTS.value or BOX.value:
        network.require_promptable("--points and --box")
    note_prompts(network)
    require_folder(out if several else out.parent)
    results = predict_all(network, inputs, masks, request, left_out)
    done = sum(x["status"] == "done" for x in results.values())
    failed = [path for path, x in results.items() if x["status"] == "failed"]
    console.info(f"{out}: {done} predicted, {len(results) - done - len(failed)} there already")
    problems = []
    if failed:
        problems.append(f"{len(failed)} of {len(results)} volumes failed: {', '.join(failed)}")
    if left_out:
        problems.append(describe_count(left_out))
    if problems:
        raise SomeFailed("\n".join(problems))


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
