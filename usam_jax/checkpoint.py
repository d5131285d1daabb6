"""Checkpoints of a run: the best and the last, each with the whole state, through Orbax.

`WORKDIR/checkpoints/STEP` holds the training state and the data iterator's; `config.json` beside
them is the run's config.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import absl.logging
import grain
import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from usam_jax.errors import UsageError, WeightsError, list_some
from usam_jax.files import read_json, write_json
from usam_jax.models import USam, init_variables, make_model

SCORE = "val_dice_mean"
KEEP_LAST = 2

# Orbax reports every step that it takes, and prints what it also raises.
absl.logging.set_verbosity(absl.logging.FATAL)


def score_of(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


class Checkpoints:
    """The checkpoints of one workdir; saving goes on in the background."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self.folder = workdir.resolve() / "checkpoints"
        policies = [
            checkpoint_managers.LatestN(KEEP_LAST),
            checkpoint_managers.BestN(get_metric_fn=score_of, n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=score_of,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    @property
    def best_step(self) -> int | None:
        return self.manager.best_step()

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator, score: float) -> None:
        """Raises WeightsError where the disk is full; the checkpoints before stay."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)
        )
        with self.naming_failures():
            self.manager.save(step, args=items, metrics={SCORE: score})

    def restore(self, step: int, state: Any, iterator: grain.DatasetIterator) -> Any:
        """The state at `step`, placed as `state` (abstract arrays) says; sets the iterator."""
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            data=grain.checkpoint.CheckpointRestore(iterator),
        )
        return self.manager.restore(step, args=items).state

    def close(self) -> None:
        """Waits for what is being saved."""
        with self.naming_failures():
            self.manager.wait_until_finished()
            self.manager.close()

    @contextlib.contextmanager
    def naming_failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{self.folder}: a checkpoint could not be saved: {str(error)[:300]}\nThe checkpoints "
                "before it are whole. Free some space and give the same command again: training "
                "goes on from the last one."
            ) from error


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


def claim_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes `config.json`, or checks that a run that is already there has the same config.

    Raises UsageError that lists every field that differs.
    """
    path = workdir / "config.json"
    saved = read_json(path)
    if saved:
        changed = differences(config, saved)
        if changed:
            raise UsageError(
                f"{workdir} holds a run with another config:\n{list_some(changed)}\n"
                "Give another --workdir, or the same values to go on with that run."
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(config.to_json_best_effort()))
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be written ({error})") from error


def check_run(workdir: pathlib.Path, model: ConfigDict) -> int:
    """The best step of a run whose model is the one of `config.model`.

    Raises WeightsError where there is no checkpoint or the model differs.
    """
    saved = read_json(workdir / "config.json")
    if not saved:
        raise WeightsError(
            f"{workdir} is no run: it has no config.json. Train one first, with "
            "python -m usam_jax.main --config=... --workdir=..."
        )
    changed = differences(
        {"model": json.loads(model.to_json_best_effort())}, {"model": saved["model"]}
    )
    if changed:
        raise WeightsError(
            f"{workdir} holds a checkpoint of another model:\n{list_some(changed)}\n"
            "Give the config that the run was trained with."
        )
    step = None
    if (workdir / "checkpoints").is_dir():
        step = Checkpoints(workdir).best_step
    if step is None:
        raise WeightsError(f"{workdir} has no finished checkpoint yet: train on")
    return step


def load_variables(
    workdir: pathlib.Path, model: USam, step: int, sharding: Sharding
) -> dict[str, Any]:
    """The model's variables at `step` of a run, without the optimiser's state."""
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    target = abstract_arrays(dict(shapes), sharding)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            workdir.resolve() / "checkpoints" / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )


def load_best(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any]:
    """The variables of a run's best checkpoint, for the model of `config.model`."""
    step = check_run(workdir, config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return load_variables(workdir, make_model(config), step, device)
