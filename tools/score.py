"""Score a folder of predicted label volumes against a folder of references, in 3-D, by case.

    python -m tools.score PREDICTIONS REFERENCES [--out=DIR] [--classes=background,liver,...]
        [--tolerance=2.0] [--policy=worst|skip]

Both folders hold label volumes (NAME.nii.gz, .nii, .mha, .nrrd or .hdr with .img), at any depth, of
any program, including nnU-Net. A prediction has the voxel grid of its reference and its name (or
NAME_0000); NAME_probabilities next to NAME is ignored. The classes, in
the order of the labels, come from a dataset.json in PREDICTIONS, in REFERENCES or in the folder above
it, or from --classes. Of a dataset.json only `labels` count: masks of MRI are scored too. Lesions are
counted for classes named tumour, lesion or similar. Distances are in mm. DIR (PREDICTIONS by default)
gets summary.json and per_case.csv.

Exit code 3: some files cannot be scored; all of them are listed and nothing is written.
Exit code 4: some files were left out because they are not volumes by their names; summary.json lists
them in left_out.
"""

import pathlib
import sys

from ml_collections import ConfigDict

from usam_jax.evaluation.report.tables import print_cases
from usam_jax.evaluation.scoring_flags import (
    OUT,
    require_complete,
    require_writable,
    score_with_flags,
)
from usam_jax.evaluation.summary import require_own_results, write_results
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError
from usam_jax.utils.workdir import PER_CASE, SUMMARY


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError(f"got {arguments}, expected PREDICTIONS REFERENCES\n{__doc__}")
    predictions, references = map(pathlib.Path, arguments)
    out = pathlib.Path(OUT.value or predictions)
    require_writable(out)
    require_own_results(out)
    summary = score_with_flags(predictions, references)
    write_results(out, summary)
    print_cases(summary)
    console.info(f"{out}: {SUMMARY}, {PER_CASE}")
    require_complete(summary["left_out"])


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
