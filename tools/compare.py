"""Compare two evaluations of the same cases, pair by pair.

    python -m tools.compare A B [--metric=Dice] [--out=DIR]
    python -m tools.compare A B --reference=LABELS [--metric=Dice] [--out=DIR] [--classes=...] ...

A and B are folders with a summary.json, written by this package (evaluated or scored) or by nnU-Net,
or the workdir of a run with exactly one evaluation. With --reference they hold predictions (NIfTI),
which are scored first; see tools/score.py for --classes, --tolerance and --policy. Differences are
B - A. DIR gets comparison.json, comparison.csv and comparison.png.

Exit code 3: the two cannot be compared. Exit code 4: they were compared, but files were left out of the
scores, because they are not volumes by their names.
"""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from usam_jax.evaluation.comparison import compare, require_own_comparison, write_comparison
from usam_jax.evaluation.report.pairs import save_pairs
from usam_jax.evaluation.report.tables import print_comparison
from usam_jax.evaluation.scoring_flags import (
    OUT,
    require_complete,
    require_writable,
    score_with_flags,
)
from usam_jax.evaluation.stored import Evaluation, from_summary, read_evaluation
from usam_jax.evaluation.summary import METRICS
from usam_jax.utils import cli, console
from usam_jax.utils.errors import UsageError

REFERENCE = flags.DEFINE_string("reference", None, "Labels to score A and B against.")
METRIC = flags.DEFINE_enum("metric", "Dice", list(METRICS), "The metric to compare.")
SCORING_FLAGS = ("classes", "tolerance", "policy")


def load_evaluation(folder: pathlib.Path) -> Evaluation:
    """The evaluation in a folder, or with --reference that of the predictions in it."""
    if REFERENCE.value is None:
        return read_evaluation(folder)
    console.info(f"{folder}:")
    return from_summary(score_with_flags(folder, pathlib.Path(REFERENCE.value)), folder)


def main(_config: ConfigDict | None, arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError(f"got {arguments}, expected A B\n{__doc__}")
    if REFERENCE.value is None and (given := [x for x in SCORING_FLAGS if flags.FLAGS[x].present]):
        raise UsageError(f"--{' --'.join(given)}: needs --reference, which scores A and B first")
    if OUT.value:
        require_writable(pathlib.Path(OUT.value))
        require_own_comparison(pathlib.Path(OUT.value))
    a, b = (load_evaluation(pathlib.Path(x)) for x in arguments)
    result = compare(a, b, METRIC.value)
    print_comparison(result)
    for warning in result["warnings"]:
        console.info(f"warning: {warning}")
    if OUT.value:
        out = pathlib.Path(OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        save_pairs(out / "comparison.png", result)
        write_comparison(out, result)
        console.info(f"{out}: comparison.json, comparison.csv, comparison.png")
    require_complete((*a.left_out, *b.left_out))


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
