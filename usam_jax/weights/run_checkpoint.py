"""Checkpoints of a run through Orbax: the best and the last two, each a complete state.

`WORKDIR/checkpoints/STEP` holds the training state; its step determines which data come next.
"""

import contextlib
import json
import operator
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Self

import absl.logging
import jax
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Sharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from usam_jax.models import variable_shapes
from usam_jax.utils import console
from usam_jax.utils.errors import WeightsError, list_some
from usam_jax.utils.mesh import all_processes
from usam_jax.utils.workdir import Workdir
from usam_jax.weights.problems import require_finite
from usam_jax.weights.run_config import read_config, require_config
from usam_jax.weights.saved_config import differences

SCORE = "dice_mean"  # on the split that chooses the best epoch
KEEP_LAST = 2
KEPT = (
    "The earlier checkpoints are intact. Free some disk space and rerun the same command to resume "
    "from the last one."
)

# Silences Orbax, which logs every operation.
absl.logging.set_verbosity(absl.logging.FATAL)


class Checkpoints:
    """Context manager of the checkpoints of one workdir.

    Saving runs in the background. Opening it for writing deletes checkpoints that an earlier process left half-saved, so only the
    run itself may do so. Raises WeightsError if the checkpoints cannot be read.
    """

    def __init__(self, workdir: pathlib.Path, read_only: bool = False) -> None:
        self.workdir = Workdir(workdir.resolve())
        self.folder = self.workdir.checkpoints
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
            all_processes(True)  # barrier: the other processes wait for process 0
        with naming_damage(damaged_checkpoint(self.folder) or self.folder):
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self.manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best score, or None."""
        return self.manager.best_step()

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Save a state in the background.

        Only a state with a score can become the best. Raises WeightsError if the disk is full or saving fails; earlier checkpoints are kept.
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
        """Return the last intact state, or None if there is no checkpoint.

        `state` is a tree of abstract arrays with the shardings of the result. Damaged checkpoints
        are reported and moved to `WORKDIR/damaged`. Raises WeightsError if the only checkpoint is
        damaged.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            problem = None
            try:
                restored = self.restore(step, state)
            except WeightsError as error:
                problem = error
            if all_processes(problem is None):
                return restored
            if len(self.manager.all_steps()) == 1:
                raise problem or WeightsError(f"{self.folder / str(step)}: a damaged checkpoint")
            if jax.process_index() == 0:
                self.set_aside(self.folder / str(step), str(problem))
            all_processes(True)
            self.manager.reload()
        return None

    def restore(self, step: int, state: Any) -> Any:
        """Return the state at `step`. Raises WeightsError if the checkpoint is damaged."""
        return restore_tree(self.folder / str(step), state)

    def set_aside(self, checkpoint: pathlib.Path, problem: str) -> None:
        """Move a damaged checkpoint to `WORKDIR/damaged`, so that Orbax does not see it."""
        folder = self.workdir.damaged
        folder.mkdir(exist_ok=True)
        shutil.rmtree(folder / checkpoint.name, ignore_errors=True)
        checkpoint.rename(folder / checkpoint.name)
        console.info(f"{checkpoint}: skipped ({problem}) and moved to {folder}")

    def wait(self) -> None:
        """Wait until everything is saved. Raises WeightsError as `save` does."""
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
        """Raise WeightsError, which names the folder, if saving fails."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{self.folder}: a checkpoint could not be saved: {str(error)[:300]}\n{KEPT}"
            ) from error


def damaged_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the first checkpoint with an unreadable score: Orbax then opens none at all."""
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_text())
        except ValueError:
            return path.parents[1]
    return None


@contextlib.contextmanager
def naming_damage(folder: pathlib.Path) -> Iterator[None]:
    """Raise WeightsError, which names the folder, if reading fails for anything but memory."""
    try:
        yield
    except Exception as error:  # Damaged files raise errors of nearly any type.
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise WeightsError(
            f"{folder}: a damaged checkpoint ({type(error).__name__}: {str(error)[:200]}).\nDelete "
            "this folder to resume from the checkpoint before it, if there is one."
        ) from error


def restore_tree(checkpoint: pathlib.Path, target: Any) -> Any:
    """Return the subtree `target` (abstract arrays with shardings) of a checkpoint's state.

    Raises WeightsError if the checkpoint is damaged or lacks an array of `target`.
    """
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,  # Runs of schema version 1 have empty entries for frozen parameters.
    )
    with naming_damage(checkpoint), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(checkpoint / "state", args=args)


def abstract_arrays(tree: Any, sharding: Sharding) -> Any:
    """Return a tree of arrays as abstract arrays that all have one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def best_step(workdir: pathlib.Path, model: ConfigDict) -> int:
    """Return the best step of a run, whose model must be `model` (`config.model`).

    The fields dtype and remat may differ, and so may two weights of deep supervision that are both
    above 0. Raises WeightsError if there is no checkpoint with a score or the model differs.
    """
    saved = require_config(workdir)
    trained, given = saved["model"], json.loads(model.to_json_best_effort())
    if trained["name"] != given["name"]:
        raise WeightsError(
            f"{workdir} holds a checkpoint of the network {trained['name']}, expected one of "
            f"{given['name']}. Give the config that the run was trained with: "
            f"--config=configs/NAME.py:{trained['name']}"
        )
    same = ["dtype", "remat"]
    if given.get("deep_supervision") and trained.get("deep_supervision"):
        same.append("deep_supervision")
    given |= {name: trained[name] for name in same if name in trained}
    changed = differences({"model": given}, {"model": trained})
    if changed:
        raise WeightsError(
            f"{workdir} holds a checkpoint of another model:\n{list_some(changed)}\n"
            "Give the config that the run was trained with."
        )
    with Checkpoints(workdir, read_only=True) as checkpoints:
        best = checkpoints.best_step
    if best is None:
        raise WeightsError(
            f"{workdir}: no checkpoint has a score. Train until the first evaluation."
        )
    return best


def load_variables(
    workdir: pathlib.Path, config: ConfigDict, step: int, sharding: Sharding
) -> dict[str, Any]:
    """Return the variables at `step` of a run, the averaged ones if the run has an average.

    `config` is `config.model`. All arrays get `sharding`, which replicates them. Raises WeightsError
    if the checkpoint is damaged or holds values that are not finite.
    """
    shapes = variable_shapes(config)
    target = abstract_arrays(dict(shapes), sharding)
    averaged = bool(read_config(workdir).get("train", {}).get("ema_decay"))
    if averaged:
        target["ema"] = {x: target.pop(x) for x in ("params", "batch_stats") if x in target}
    checkpoint = Workdir(workdir.resolve()).checkpoint(step)
    variables = restore_tree(checkpoint, target)
    if averaged:
        variables |= variables.pop("ema")
    flat = traverse_util.flatten_dict(variables, sep="/")
    require_finite(((k, x.addressable_data(0)) for k, x in flat.items()), str(checkpoint))
    return variables


def load_best(workdir: pathlib.Path, config: ConfigDict) -> tuple[int, dict[str, Any]]:
    """Return step and variables of a run's best checkpoint, on the first local device.

    `config` is `config.model`. Raises WeightsError as `best_step` and `load_variables` do.
    """
    step = best_step(workdir, config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return step, load_variables(workdir, config, step, device)
