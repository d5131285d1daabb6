"""Checkpoints of a run: the best and the last, each with the whole state, through Orbax.

`WORKDIR/checkpoints/STEP` holds the training state; which data come next follows from its step.
`config.json` beside them is the run's config.
"""

import contextlib
import json
import operator
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any, Self

import absl.logging
import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from usam_jax.models import variable_shapes
from usam_jax.models.common import registry
from usam_jax.utils import console
from usam_jax.utils.errors import UsageError, WeightsError, list_some
from usam_jax.utils.files import read_json, require_folder
from usam_jax.utils.mesh import all_processes
from usam_jax.weights import saved_config

# What may change when a run goes on: it has no part in what the steps so far have computed.
FREE = re.compile(
    r"config\.(eval\.(?!select_on|every_epochs)|model\.remat|data\.(num_workers|packed_dir)"
    r"|train\.(checkpoint_every_steps|log_every_steps|fsdp|skip_nonfinite))"
)
SCORE = "dice_mean"  # on the part that chooses the best epoch
KEEP_LAST = 2
KEPT = (
    "The checkpoints before it are whole. Free some space and give the same command again: "
    "training goes on from the last one."
)

# Orbax reports every step that it takes.
absl.logging.set_verbosity(absl.logging.FATAL)


class Checkpoints:
    """The checkpoints of one workdir, as a context; saving goes on in the background.

    Only the run itself opens it to write: that clears away what an earlier one left half-saved.
    """

    def __init__(self, workdir: pathlib.Path, read_only: bool = False) -> None:
        self.folder = workdir.resolve() / "checkpoints"
        policies = [
            checkpoint_managers.LatestN(KEEP_LAST),
            checkpoint_managers.BestN(
                get_metric_fn=operator.itemgetter(SCORE),
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=operator.itemgetter(SCORE),
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        if not read_only:
            while jax.process_index() == 0 and (unreadable := damaged_checkpoint(self.folder)):
                self.set_aside(unreadable, "its score cannot be read")
            all_processes(True)  # waits for the first
        with naming_damage(damaged_checkpoint(self.folder) or self.folder):
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    @property
    def best_step(self) -> int | None:
        return self.manager.best_step()

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Saves a state; one with a score can become the best.

        Raises WeightsError where there is no room; the checkpoints before stay.
        """
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if not all_processes(free >= needed):
            raise WeightsError(
                f"{self.folder}: a checkpoint needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB "
                f"of the disk are free.\n{KEPT}"
            )
        items = ocp.args.Composite(state=ocp.args.StandardSave(state))
        with self.naming_failures():
            self.manager.save(step, args=items, metrics=None if score is None else {SCORE: score})

    def restore_latest(self, state: Any) -> Any | None:
        """The last state that is whole, placed as `state` (abstract arrays) says; None if none is.

        Damaged checkpoints are named and set aside, in `WORKDIR/damaged`.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            problem = None
            try:
                found = self.restore(step, state)
            except WeightsError as error:
                problem = error
            if all_processes(problem is None):
                return found
            if len(self.manager.all_steps()) == 1:
                raise problem or WeightsError(f"{self.folder / str(step)}: a damaged checkpoint")
            if jax.process_index() == 0:
                self.set_aside(self.folder / str(step), str(problem))
            all_processes(True)
            self.manager.reload()
        return None

    def restore(self, step: int, state: Any) -> Any:
        """The state at `step`. Raises WeightsError where the checkpoint is damaged."""
        return restore_tree(self.folder / str(step), state)

    def set_aside(self, checkpoint: pathlib.Path, problem: str) -> None:
        """Moves a damaged checkpoint out of the way."""
        folder = self.folder.parent / "damaged"
        folder.mkdir(exist_ok=True)
        shutil.rmtree(folder / checkpoint.name, ignore_errors=True)
        checkpoint.rename(folder / checkpoint.name)
        console.info(f"{checkpoint}: skipped ({problem}); it is in {folder} now")

    def wait(self) -> None:
        """Waits for what is being saved. Raises WeightsError as `save` does."""
        with self.naming_failures():
            self.manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.wait()
        finally:
            self.manager.close()

    @contextlib.contextmanager
    def naming_failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{self.folder}: a checkpoint could not be saved: {str(error)[:300]}\n{KEPT}"
            ) from error


def damaged_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
    """The first checkpoint whose score cannot be read, which keeps Orbax from opening any."""
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_text())
        except ValueError:
            return path.parents[1]
    return None


@contextlib.contextmanager
def naming_damage(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damage shows up as nearly any error
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise WeightsError(
            f"{folder}: a damaged checkpoint ({type(error).__name__}: {str(error)[:200]}).\nDelete "
            "this folder to go on from the checkpoint before it, if there is one."
        ) from error


def restore_tree(checkpoint: pathlib.Path, target: Any) -> Any:
    """The part of a checkpoint's state that `target` (abstract arrays with shardings) asks for.

    Raises WeightsError if the checkpoint is damaged or lacks some of it.
    """
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,  # runs of version 1 have empty entries for the frozen parts
    )
    with naming_damage(checkpoint), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(checkpoint / "state", args=args)


def abstract_arrays(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def flat_config(config: Any) -> dict[str, Any]:
    """Values by dotted field name, as JSON gives them back."""
    if isinstance(config, ConfigDict):
        config = json.loads(config.to_json_best_effort())
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{k}": v for k, v in flat_config(value).items()}
        else:
            flat[name] = value
    return flat


def differences(config: Any, saved: Any) -> list[str]:
    """A line for each field whose value differs."""
    given, found = flat_config(config), flat_config(saved)
    return [
        f"config.{name}: given {given.get(name)!r}, found {found.get(name)!r}"
        for name in sorted(given.keys() | found.keys())
        if given.get(name) != found.get(name)
    ]


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of a run, or nothing where there is no run with a finished checkpoint."""
    steps = (workdir / "checkpoints").glob("[0-9]*")
    finished = any(path.name.isdigit() for path in steps)
    return saved_config.upgrade(read_json(workdir / "config.json")) if finished else {}


def require_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of a run. Raises WeightsError where there is no finished checkpoint."""
    saved = read_config(workdir)
    if not saved:
        raise WeightsError(
            f"{workdir} has no finished checkpoint. Train first: "
            f"python -m usam_jax.main --config=... --workdir={workdir}"
        )
    return saved


def check_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes the workdir where there is none.

    Raises UsageError where it cannot be written, or, listing every field that differs, where it
    holds a run with another config.
    """
    require_folder(workdir)
    saved = read_config(workdir)
    changed = [x for x in differences(config, saved) if saved and not FREE.match(x)]
    if changed:
        raise UsageError(
            f"{workdir} holds a run with another config:\n{list_some(changed)}\n"
            "Give another --workdir, or the same values to go on with that run."
        )


def best_step(workdir: pathlib.Path, model: ConfigDict) -> int:
    """The best step of a run whose model is the one of `config.model`, whatever its dtype.

    Raises WeightsError where there is no checkpoint or the model differs.
    """
    saved = require_config(workdir)
    found, given = saved["model"], json.loads(model.to_json_best_effort())
    if found["name"] != given["name"]:
        raise WeightsError(
            f"{workdir} holds a checkpoint of the network {found['name']}, expected one of "
            f"{given['name']}. Give the config that the run was trained with: "
            f"--config=configs/NAME.py:{registry.short_name(found['name'])}"
        )
    given |= {name: found[name] for name in ("dtype", "remat") if name in found}
    changed = differences({"model": given}, {"model": saved["model"]})
    if changed:
        raise WeightsError(
            f"{workdir} holds a checkpoint of another model:\n{list_some(changed)}\n"
            "Give the config that the run was trained with."
        )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        best = checkpoints.best_step
    if best is None:
        raise WeightsError(f"{workdir}: no checkpoint has a score; train on")
    return best


def load_variables(
    workdir: pathlib.Path, config: ConfigDict, step: int, sharding: Sharding
) -> dict[str, Any]:
    """The variables of `config.model` at `step` of a run, the averaged ones if it averages.

    Raises WeightsError where the checkpoint is damaged.
    """
    shapes = variable_shapes(config)
    target = abstract_arrays(dict(shapes), sharding)
    averaged = bool(read_config(workdir).get("train", {}).get("ema_decay"))
    if averaged:
        target["ema"] = {x: target.pop(x) for x in ("params", "batch_stats") if x in target}
    found = restore_tree(workdir.resolve() / "checkpoints" / str(step), target)
    if averaged:
        found |= found.pop("ema")
    return found


def load_best(workdir: pathlib.Path, config: ConfigDict) -> tuple[int, dict[str, Any]]:
    """Step and variables of a run's best checkpoint, for the model of `config.model`."""
    step = best_step(workdir, config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return step, load_variables(workdir, config, step, device)
