"""Reads a run's config and checks that a config may resume the run."""

import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from usam_jax.utils.errors import UsageError, WeightsError, list_some
from usam_jax.utils.files import read_json, require_folder
from usam_jax.utils.outputs import is_json_with
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import saved_config

# Fields that may change on resume: the steps done so far do not depend on them.
FREE = re.compile(
    r"config\.(eval\.(?!select_on|every_epochs)|model\.remat|data\.(num_workers|packed_dir)"
    r"|train\.(checkpoint_every_steps|compiler_options|log_every_steps|fsdp|skip_nonfinite))"
)


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the config of a run, or {} if it has no finished checkpoint."""
    steps = Workdir(workdir).checkpoints.glob("[0-9]*")
    finished = any(path.name.isdigit() for path in steps)
    return saved_config.upgrade(read_json(Workdir(workdir).config)) if finished else {}


def require_utf8(workdir: pathlib.Path) -> None:
    """Raise UsageError if a workdir is not named in UTF-8: Orbax cannot use such a path."""
    try:
        str(workdir.resolve()).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"workdir: got {str(workdir)!r}, expected a path in UTF-8. Rename it, or give another."
        ) from error


def require_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the config of a run.

    Raises WeightsError if it has no finished checkpoint, and UsageError if it is not named in UTF-8.
    """
    require_utf8(workdir)
    saved = read_config(workdir)
    if not saved:
        missing = "" if workdir.is_dir() else "does not exist, so it "
        raise WeightsError(
            f"{workdir} {missing}has no finished checkpoint. Train first: "
            f"python -m usam_jax.main --config=... --workdir={workdir}"
        )
    return saved


def check_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Create the workdir if it does not exist, and check that `config` may use it.

    Raises UsageError if the workdir is not writable or not named in UTF-8, if it holds files of the
    user that a run would replace, or if it holds a run with another config: the message lists every
    field that differs.
    """
    require_folder(workdir)
    require_utf8(workdir)
    saved = read_config(workdir)
    paths = Workdir(workdir)
    written = (paths.config, paths.data, paths.run, paths.metrics, paths.metrics_csv)
    foreign = [str(x) for x in (*written, paths.progress) if x.exists()]
    # A run that was killed before its first checkpoint has these files, too.
    is_own = bool(saved) or is_json_with("model", "data", "train")(paths.config)
    if foreign and not is_own:
        raise UsageError(
            f"{workdir} is not a run, since its {paths.config.name} is missing or of another program, "
            f"but holds files that a run would replace:\n{list_some(foreign)}\n"
            "Give another --workdir."
        )
    changed = [x for x in saved_config.differences(config, saved) if saved and not FREE.match(x)]
    if changed:
        raise UsageError(
            f"{workdir} holds a run with another config:\n{list_some(changed)}\n"
            "Give another --workdir, or the same values to resume that run."
        )
