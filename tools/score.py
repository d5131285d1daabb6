"""Scores a folder of predicted label volumes against a folder of references, in 3-D, by case.

    python -m tools.score PREDICTIONS REFERENCES [--out=DIR] [--classes=background,liver,...]
        [--tolerance=2.0] [--policy=worst|skip]

NIfTI (NAME.nii.gz, NAME.nii) by any program, nnU-Net too; a prediction has the name and the voxel
grid of its reference, other files are ignored. The classes, in the order of the labels, are those of
a dataset.json in PREDICTIONS, in REFERENCES or above it, or --classes; of those named tumour, lesion
or the like lesions are counted. Distances are in mm.
DIR, which is PREDICTIONS if not given, gets summary.json and per_case.csv.

Exit code 3: files that cannot be scored; all of them are listed and nothing is written.
"""

import json
import os
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from usam_jax.evaluation.case_metrics import POLICIES, Scoring
from usam_jax.evaluation.report.case_table import print_cases
from usam_jax.evaluation.score_folder import find_classes, score_folder
from usam_jax.evaluation.summary import write_results
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError
from usam_jax.utils.workdir import PER_CASE, SUMMARY, EvaluationFolder

OUT = flags.DEFINE_string("out", None, "The folder that the results are written to.")
CLASSES = flags.DEFINE_list("classes", None, "Names in the order of the labels, background first.")
TOLERANCE = flags.DEFINE_float("tolerance", 2.0, "Of NSD, in mm.", lower_bound=0.0)
POLICY = flags.DEFINE_enum("policy", "worst", list(POLICIES), "What a missed class scores.")


def make_scoring(predictions: pathlib.Path, references: pathlib.Path) -> Scoring:
    """The scoring that the flags and the folders tell. Raises UsageError for unknown classes."""
    classes = tuple(CLASSES.value) if CLASSES.value else find_classes(predictions, references)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UsageError(f"--classes: found {classes}, expected background and names that differ")
    return Scoring(classes, (TOLERANCE.value,) * (len(classes) - 1), POLICY.value)


def score(predictions: pathlib.Path, references: pathlib.Path) -> dict[str, Any]:
    """The summary of a folder, scored as the flags tell."""
    return score_folder(predictions, references, make_scoring(predictions, references))


def require_writable(folder: pathlib.Path) -> None:
    """Raises UsageError, before any time is spent, where the folder could not be written."""
    existing = next(x for x in (folder, *folder.resolve().parents) if x.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"{folder}: cannot be written; give another folder with --out")


def require_own_summary(path: pathlib.Path) -> None:
    """Raises UsageError where another program wrote the summary that is there."""
    try:
        own = not path.exists() or "schema_version" in json.loads(path.read_text())
    except (OSError, ValueError):
        own = False
    if not own:
        raise UsageError(
            f"{path}: is there and another program's (nnU-Net writes one), so it is kept; "
            "give another folder with --out"
        )


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    """What the command line asks for."""
    if len(arguments) != 2:
        raise UsageError(f"found {arguments}, expected PREDICTIONS REFERENCES\n{__doc__}")
    predictions, references = map(pathlib.Path, arguments)
    out = pathlib.Path(OUT.value or predictions)
    require_writable(out)
    require_own_summary(EvaluationFolder(out).summary)
    summary = score(predictions, references)
    write_results(out, summary)
    print_cases(summary)
    console.info(f"{out}: {SUMMARY}, {PER_CASE}")


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
