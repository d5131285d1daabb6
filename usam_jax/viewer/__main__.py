"""View a CT in the browser, see the automatic mask, correct it with clicks, and save it.

    python -m usam_jax.viewer -i CT.nii.gz --checkpoint=WORKDIR [-o MASK.nii.gz]
    python -m usam_jax.viewer -i DICOM_FOLDER --checkpoint=WORKDIR --reference=MASK.nii.gz
    python -m usam_jax.viewer -i CT.nii.gz --mask=MASK.nii.gz

The page is served on 127.0.0.1 only and opens in the browser; Ctrl-C stops the server. Without
--checkpoint there is no model: the viewer shows masks, compares them, and has a brush. -o is
NAME_mask.nii.gz in the current folder by default. Of a folder of volumes, -o is a folder, and
the volumes become a work list; --mask and --reference are then folders with the names of the masks.

Everything is kept in MASK.view next to the mask at once, also after a crash: the same command
continues. --fresh keeps that folder under another name and starts again.
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from usam_jax.io.cohort import describe_left_out
from usam_jax.io.dicom import is_series
from usam_jax.io.volume_files import volume_name
from usam_jax.predict import output
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError
from usam_jax.utils.files import require_folder

# Other programs have flags of the same names, and tests import several programs.
INPUT = flags.DEFINE_string(
    "input", None, "A volume, or a folder of volumes.", short_name="i", allow_override=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "The mask, or a folder for the masks.", short_name="o", allow_override=True
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run.", allow_override=True)
MASK = flags.DEFINE_string("mask", None, "A mask to start from.", allow_override=True)
REFERENCE = flags.DEFINE_string("reference", None, "A mask to compare with.", allow_override=True)
POINTS = flags.DEFINE_string(
    "points", None, "Points and boxes to start from (.json).", allow_override=True
)
CLASSES = flags.DEFINE_list(
    "classes",
    None,
    "Names in the order of the labels, if there is no checkpoint.",
    allow_override=True,
)
SERIES = flags.DEFINE_string(
    "series", None, "The DICOM series of a folder of several.", allow_override=True
)
PORT = flags.DEFINE_integer("port", 0, "The port; 0 is a free one.", 0, 65535)
BROWSER = flags.DEFINE_bool("browser", True, "Open the page in the browser.")
FRESH = flags.DEFINE_bool("fresh", False, "Start again; the earlier session is kept aside.")


def check_flags(arguments: list[str]) -> None:
    """Raise UsageError if flags are missing or contradict each other."""
    if arguments or not INPUT.value:
        got = " ".join(arguments) if arguments else "no -i"
        raise UsageError(f"got {got}, expected -i VOLUME and other flags\n{__doc__}")
    if POINTS.value and not CHECKPOINT.value:
        raise UsageError("--points: got no model, expected --checkpoint as well")
    if CLASSES.value and CHECKPOINT.value:
        raise UsageError("--classes: got --checkpoint as well, which names its classes")


def run_viewer(_config: ConfigDict | None, arguments: list[str]) -> None:
    """Serve the viewer as the flags say, until Ctrl-C."""
    check_flags(arguments)
    try:
        from usam_jax.viewer import serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name}: is not installed. Run: pip install 'usam-jax[viewer]'"
        ) from error
    from usam_jax.viewer import planning

    source = pathlib.Path(str(INPUT.value))
    out = optional(OUTPUT.value) or default_output(source)
    inputs, left_out, _ = output.find_inputs(source, out)
    for line in describe_left_out(left_out):
        console.info(f"left out: {line}")
    several = list(inputs.values()) != [source]
    if several and POINTS.value:
        raise UsageError("--points: got a folder of several volumes, expected one volume")
    planned = planning.plan(
        inputs, source, out, bool(OUTPUT.value), optional(MASK.value), optional(REFERENCE.value)
    )
    require_folder(out if several else out.parent)
    classes, model = planning.find_classes(optional(CHECKPOINT.value), planned, CLASSES.value)
    serve.serve(
        serve.Settings(
            names=tuple(inputs),
            paths=tuple(planned),
            classes=classes,
            model=model,
            checkpoint=optional(CHECKPOINT.value),
            points=optional(POINTS.value),
            series=SERIES.value,
            fresh=FRESH.value,
            port=PORT.value,
            browser=BROWSER.value,
        )
    )


def default_output(source: pathlib.Path) -> pathlib.Path:
    """The mask in the current folder, or for a folder of volumes the folder NAME_masks."""
    if not source.is_dir():
        return pathlib.Path(f"{volume_name(source)}_mask.nii.gz")
    name = source.resolve().name or "volumes"
    return pathlib.Path(f"{name}_mask.nii.gz" if is_series(source) else f"{name}_masks")


def optional(path: str | None) -> pathlib.Path | None:
    """The path that a flag gives, or None."""
    return pathlib.Path(path) if path else None


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(run_viewer, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
