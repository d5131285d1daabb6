"""The training loop: data, step, evaluation and checkpoints."""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data import loader, splits, windows
from usam_jax.data.packed.format import Packed
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.splits import Subset
from usam_jax.models import init_variables, make_model, variable_shapes
from usam_jax.models.common.spec import used_groups
from usam_jax.training import checks, curves, feed, optimizer, run_record, throughput
from usam_jax.training.metric_writer import MetricWriter
from usam_jax.training.step import (
    TrainState,
    TrainStep,
    create_state,
    make_train_step,
    placed_state,
)
from usam_jax.utils import console, runtime
from usam_jax.utils.errors import Stopped, UserError
from usam_jax.utils.files import write_json
from usam_jax.utils.formatting import percent
from usam_jax.utils.mesh import make_mesh
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import load, run_config, saved_config
from usam_jax.weights.run_checkpoint import Checkpoints

PLOT_EVERY = 30.0  # seconds: with short epochs, drawing took a third of the time


class Training(NamedTuple):
    """The parts of a training run.

    `target` is the state as abstract arrays with shardings. `start_fn` computes the initial state,
    from complete variables if it is given any.
    """

    model: nn.Module
    train_step: TrainStep
    target: TrainState
    start_fn: Callable[..., TrainState]


class Evaluated(NamedTuple):
    """Result of an evaluation during training: metrics by name, and the score of the epoch."""

    metrics: dict[str, float | None]
    score: float | None


# Evaluates the variables of a run on the subset that chooses the best epoch.
EvaluateFn = Callable[[dict[str, Any]], Evaluated]
MakeEvaluateFn = Callable[[nn.Module, Packed, Subset, ConfigDict, Mesh], EvaluateFn]


def make_training(config: ConfigDict, steps_per_epoch: int, mesh: Mesh) -> Training:
    """Return the model, step and optimizer state of a config, without computing anything.

    Raises UsageError if `config.model` or `config.optimizer` has an unsupported value.
    """
    model, spec = make_model(config.model), models.get(config.model.name).at(config.model)
    optimizer.check(config.optimizer, spec)
    shapes = variable_shapes(config.model)
    warmup = math.ceil(steps_per_epoch / 2) if config.optimizer.warmup else 0
    steps, power = config.train.num_epochs * steps_per_epoch, config.optimizer.decay_power
    factor_fn = optimizer.polynomial_decay(steps, warmup, power)
    tx = optimizer.make_optimizer(config.optimizer, factor_fn, spec)

    used = used_groups(shapes["params"], spec)
    rounds = config.prompts.rounds if config.prompts.kind == "interactive" else 0

    def rates_fn(step: Any) -> dict[str, Any]:
        rates = config.optimizer.learning_rates
        return {f"lr/{group}": rates[group] * factor_fn(step) for group in used}

    def start_fn(loaded: dict[str, Any] | None = None) -> TrainState:
        if loaded is None:
            variables = init_variables(config.model, jax.random.key(config.seed))
            loaded = load.load_initial(config, variables)
        # Via the host: devices of different processes cannot exchange arrays directly.
        return create_state(tx, jax.device_get(loaded), target, config.train, spec)

    target = placed_state(tx, shapes, mesh, config.train, spec)
    train_step = make_train_step(
        model, spec, tx, rates_fn, mesh, config.train, target, config.seed, rounds
    )
    return Training(model, train_step, target, start_fn)


def check_finite(
    values: dict[str, Any],
    before: int,
    state: TrainState,
    packed: Packed,
    rows: np.ndarray,
    config: ConfigDict,
    checkpoints: Checkpoints,
) -> None:
    """Raise UserError if a step was skipped since the last start, unless `train.skip_nonfinite`.

    `values` are the metrics of the current step, `before` is the number of steps skipped in earlier
    starts. `rows` are those that training draws from. The error names the step, its slices (of
    windows the first ones) and the last good checkpoint.
    """
    if values["train/skipped"] == before or config.train.skip_nonfinite:
        return
    step = int(state.last_skipped)
    positions, _ = loader.row_batches(len(rows), config)
    slices = packed.slices("train")
    names = [slices[row]["name"] for row in rows[positions[step - 1]]]
    checkpoints.wait()
    raise UserError(
        f"the loss or a gradient was not finite at step {step}, on the slices {', '.join(names)}. "
        f"That step changed nothing. The last checkpoint is that of step "
        f"{checkpoints.latest_step} in {checkpoints.folder}. Check those slices. To resume and "
        "skip such steps, set config.train.skip_nonfinite=True. To train in another --workdir, "
        "lower config.optimizer.learning_rates or set config.model.dtype=float32."
    )


class Publisher:
    """Writes `metrics.csv`, `progress.png` and `run.json` of a run, for readers outside."""

    def __init__(
        self, writer: MetricWriter, record: run_record.RunRecord, config: ConfigDict
    ) -> None:
        self.writer, self.record, self.config = writer, record, config
        self.drawn = -math.inf  # time of the last plot, in seconds

    def publish(self, step: int, final: bool) -> None:
        """Write the files as of `step`, the plot every `PLOT_EVERY` seconds and if `final`."""
        if not self.writer.active:
            return
        rows = self.writer.read()
        self.writer.write_csv(rows)
        if final or time.monotonic() - self.drawn > PLOT_EVERY:
            path = self.writer.workdir.progress
            curves.save_progress(path, rows, self.config.eval.select_on)
            self.drawn = time.monotonic()
        self.record.write(step)


def note_values(metrics: dict[str, Any]) -> str:
    """Format the loss and the learning rate of each group for the progress line."""
    loss = "not finite" if metrics["train/loss"] is None else f"{metrics['train/loss']:.4f}"
    rates = "  ".join(f"{x.removeprefix('lr/')} {metrics[x]:.1e}" for x in metrics if "lr/" in x)
    return f"loss {loss}  lr: {rates}"


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    make_evaluate_fn: MakeEvaluateFn,
    profile: tuple[int, int] = (0, 0),
) -> None:
    """Train to the last epoch, resuming from the workdir's last checkpoint if there is one.

    `make_evaluate_fn` returns the evaluation that chooses the best epoch. The steps from
    `profile[0]` to `profile[1]` are recorded as a trace for TensorBoard; (0, 0) records none.

    Raises UsageError, DataError or WeightsError if config, data or weights cannot be used,
    UserError if a loss or gradient is not finite, and Stopped after a signal.
    """
    mesh, is_main_process = make_mesh(), runtime.is_main_process()
    checks.check(config, mesh)
    run_config.check_config(workdir, config)
    packed = prepare(config.data)
    subsets = splits.split_subsets(packed, config.data, config.eval.select_on)
    splits.choose(subsets, config)  # so that a wrong config.eval.split fails before training
    trained, chosen = subsets["train"], subsets[config.eval.select_on]
    dims = models.get(config.model.name).dims
    rows = windows.training_rows(packed, trained.split, trained.rows, config.data.slices, dims)
    per_step = config.train.batch_size * models.predicted_slices(config.model)
    _, steps_per_epoch = loader.row_batches(len(rows), config)
    num_steps = config.train.num_epochs * steps_per_epoch
    training = make_training(config, steps_per_epoch, mesh)
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore_latest(training.target)
        if state is None:
            state = training.start_fn()
            if is_main_process:
                write_json(Workdir(workdir).config, saved_config.to_json(config))
                splits.write_record(workdir, packed, subsets)
        else:
            splits.check_record(workdir, packed)
        first, skipped = int(state.step), int(state.num_skipped)
        if first:
            console.info(f"resuming from step {first} of {num_steps} in {workdir}")
        if skipped:
            console.info(f"{skipped} steps so far were skipped: loss or gradient not finite")
        console.info(
            f"{len(trained)} slices to train on, {len(chosen)} of {config.eval.select_on} to "
            f"choose the best epoch; {steps_per_epoch} steps per epoch; {mesh.size} x "
            f"{jax.devices()[0].device_kind}"
        )
        iterator, _ = loader.train_batches(
            packed, rows, config, first, jax.process_index(), jax.process_count(), dims
        )
        evaluate_fn = make_evaluate_fn(training.model, packed, chosen, config, mesh)
        record = run_record.RunRecord(workdir, config, packed, first)
        with (
            contextlib.closing(iterator),
            MetricWriter(workdir, first, active=is_main_process) as writer,
            console.Progress("training", num_steps, "steps", first) as bar,
            runtime.Profile(profile, workdir) as tracer,
            runtime.StopSignal() as stop,
        ):
            speed = throughput.Meter(per_step)
            batches = feed.Feed(iterator, mesh, speed)
            publisher = Publisher(writer, record, config)
            for step in range(first + 1, num_steps + 1):
                tracer.before(step)
                batch = batches.take()
                with jax.transfer_guard("disallow"):
                    state, values = training.train_step(state, batch)
                speed.count()
                epoch, rest = divmod(step, steps_per_epoch)
                ends = not rest and (epoch % config.eval.every_epochs == 0 or step == num_steps)
                saves = ends or not step % config.train.checkpoint_every_steps
                if not saves:  # before a save, an error in the next batch would lose this step
                    batches.fetch()
                note = ""
                if step % config.train.log_every_steps == 0 or ends:
                    values = jax.device_get(values)
                    check_finite(values, skipped, state, packed, rows, config, checkpoints)
                    metrics = {
                        name: float(x) if np.isfinite(x) else None for name, x in values.items()
                    }
                    writer.write(step, metrics | speed.read())
                    note = note_values(metrics)
                bar.advance(note=note, per_step=per_step)
                if ends:
                    evaluated = evaluate_fn(state.variables())
                    writer.write(step, evaluated.metrics)
                    dice = percent(evaluated.score)
                    console.info(f"epoch {epoch}: {config.eval.select_on} Dice {dice} %")
                    checkpoints.save(step, state, evaluated.score or 0.0)
                    publisher.publish(step, final=step == num_steps)
                    speed.restart()
                elif saves:
                    checkpoints.save(step, state)
                if received := stop.after(step):
                    if checkpoints.latest_step != step:
                        checkpoints.save(step, state)
                    checkpoints.wait()
                    publisher.publish(step, final=True)
                    raise Stopped(
                        f"{received}: stopped after step {step} of {num_steps}, which is saved; "
                        "rerun the same command to resume"
                    )
