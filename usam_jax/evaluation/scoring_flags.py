"""Command-line flags that `tools.score` and `tools.compare` share."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from absl import flags

from usam_jax.evaluation.case_metrics import POLICIES
from usam_jax.evaluation.score_folder import score
from usam_jax.utils.errors import SomeFailed, UsageError, list_some

OUT = flags.DEFINE_string("out", None, "The folder that the results are written to.")
CLASSES = flags.DEFINE_list("classes", None, "Names in the order of the labels, background first.")
TOLERANCE = flags.DEFINE_float("tolerance", 2.0, "The tolerance of NSD, in mm.", lower_bound=0.0)
POLICY = flags.DEFINE_enum("policy", "worst", list(POLICIES), "What a missed class scores.")


def score_with_flags(predictions: pathlib.Path, references: pathlib.Path) -> dict[str, Any]:
    """The summary of `score_folder.score` under the flags that were given."""
    return score(predictions, references, CLASSES.value, TOLERANCE.value, POLICY.value)


def require_complete(left_out: Iterable[str]) -> None:
    """Raise SomeFailed if files were left out of scores, for the reasons given."""
    if lines := list(dict.fromkeys(left_out)):
        raise SomeFailed(f"{len(lines)} files were left out:\n{list_some(lines)}")


def require_writable(folder: pathlib.Path) -> None:
    """Raise UsageError if the folder can neither be written to nor be created."""
    places = (folder, *folder.resolve().parents)  # a broken link cannot become a folder
    existing = next(x for x in places if x.exists() or x.is_symlink())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"{folder}: cannot be written; give another folder with --out")
