"""Training: the step, and the loop that orders data, step, evaluation and checkpoints."""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import checkpoint, checks, evaluate, logs, losses, metrics, optim, report, weights
from usam_jax.checkpoint import Checkpoints
from usam_jax.data import pipeline, splits
from usam_jax.data.prepare import prepare
from usam_jax.errors import UserError
from usam_jax.files import write_json
from usam_jax.models import USam, init_variables, make_model
from usam_jax.sharding import make_mesh, over_batch, put_batch, replicated

TrainStep = Callable[["TrainState", dict[str, Any]], tuple["TrainState", dict[str, Any]]]


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the constants that go with it."""

    step: Any  # int32[]: the steps done
    params: Any
    batch_stats: Any
    constants: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        named = {
            "params": self.params,
            "batch_stats": self.batch_stats,
            "constants": self.constants,
        }
        return {name: tree for name, tree in named.items() if tree}


def create_state(
    model: USam, tx: optax.GradientTransformation, variables: dict[str, Any], mesh: Mesh
) -> TrainState:
    """The state before the first step, on every device of the mesh."""

    def create(variables: dict[str, Any]) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            constants=variables["constants"],
            opt_state=tx.init(variables["params"]),
        )

    return jax.jit(create, out_shardings=replicated(mesh))(variables)


def make_train_step(
    model: USam,
    tx: optax.GradientTransformation,
    rates_fn: Callable[[Any], dict[str, Any]],
    mesh: Mesh,
) -> TrainStep:
    """Jitted (state, batch) -> state, metrics; the batch is split over the mesh's devices.

    BatchNorm and Dice see the whole batch. The state given is used up.
    """

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        images, prompts = evaluate.batch_images(batch), evaluate.batch_prompts(batch)
        labels = batch["label"].astype(jnp.int32)

        def loss_fn(params: Any) -> tuple[Any, Any]:
            variables = {**state.variables, "params": params}
            logits, changed = model.apply(
                variables, images, prompts, train=True, mutable=["batch_stats"]
            )
            loss, parts = losses.segmentation_loss(logits, labels)
            return loss, (parts, changed.get("batch_stats", {}))

        (loss, (parts, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        values = {"train/loss": loss, **{f"train/{name}": part for name, part in parts.items()}}
        values |= rates_fn(state.step)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=stats,
            opt_state=opt_state,
        ), values

    everywhere = replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(everywhere, over_batch(mesh)),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def make_training(
    config: ConfigDict, steps_per_epoch: int, mesh: Mesh, resumed: bool = False
) -> tuple[USam, TrainState, TrainStep]:
    """The model of a config, its state before the first step, and the step.

    A run that is `resumed` gets its state from a checkpoint and needs no initial weights.
    """
    model = make_model(config.model)
    variables = init_variables(model, jax.random.key(config.seed))
    if not resumed:
        variables = weights.load_initial(config, variables)
    warmup = math.ceil(steps_per_epoch / 2) if config.optimizer.warmup else 0
    factor_fn = optim.polynomial_decay(config.train.num_epochs * steps_per_epoch, warmup)
    rates = optim.learning_rates(config.optimizer, variables["params"])
    tx = optim.make_optimizer(config.optimizer, factor_fn, variables["params"])

    def rates_fn(step: Any) -> dict[str, Any]:
        return {f"lr/{part}": rate * factor_fn(step) for part, rate in rates.items()}

    state = create_state(model, tx, variables, mesh)
    return model, state, make_train_step(model, tx, rates_fn, mesh)


def check_finite(values: dict[str, Any], step: int, checkpoints: Checkpoints) -> None:
    """Raises UserError, naming the last good checkpoint, where the loss is not finite."""
    if math.isfinite(float(values["train/loss"])):
        return
    checkpoints.wait()
    raise UserError(
        f"the loss is {float(values['train/loss'])} at step {step}. The last good checkpoint is "
        f"that of step {checkpoints.latest_step} in {checkpoints.folder}. Try lower "
        "config.optimizer.learning_rates, or config.model.dtype=float32, in another --workdir."
    )


def note_values(values: dict[str, float]) -> str:
    """What the progress line says of a step: the loss and each part's learning rate."""
    rates = "  ".join(f"{x.removeprefix('lr/')} {values[x]:.1e}" for x in values if "lr/" in x)
    return f"loss {values['train/loss']:.4f}  lr: {rates}"


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to the last epoch, going on from the workdir's last checkpoint if there is one.

    Raises UsageError, DataError and WeightsError for what the user can mend, and UserError where
    the loss is not finite.
    """
    mesh = make_mesh()
    checks.check_config(config, mesh)
    checkpoint.check_config(workdir, config)
    packed = prepare(config.data)
    parts = splits.split_parts(packed, config.data, config.eval.select_on)
    splits.choose(parts, config)  # fails now rather than after the training
    iterator, steps_per_epoch = pipeline.train_batches(
        packed, parts["train"].rows, config, jax.process_index(), jax.process_count()
    )
    num_steps = config.train.num_epochs * steps_per_epoch
    with contextlib.closing(iterator), Checkpoints(workdir) as checkpoints:
        first = checkpoints.latest_step or 0
        model, state, train_step = make_training(config, steps_per_epoch, mesh, first > 0)
        if first:
            splits.check_record(workdir, packed)
            target = checkpoint.abstract_arrays(state, replicated(mesh))
            state = checkpoints.restore(first, target, iterator)
            logs.say(f"going on from step {first} of {num_steps} in {workdir}")
        else:
            write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))
            splits.write_record(workdir, packed, parts)
        select_on = config.eval.select_on
        logs.say(
            f"{len(parts['train'])} slices to train on, {len(parts[select_on])} of {select_on} to "
            f"choose the best epoch on; {steps_per_epoch} steps an epoch; {mesh.size} x "
            f"{jax.devices()[0].device_kind}"
        )
        eval_step = evaluate.make_eval_step(model, mesh)
        with (
            logs.MetricWriter(workdir, first) as writer,
            logs.Progress("training", num_steps, "steps", first) as bar,
        ):
            for step in range(first + 1, num_steps + 1):
                state, values = train_step(state, put_batch(next(iterator), mesh))
                note = ""
                if step % config.train.log_every_steps == 0 or step == num_steps:
                    check_finite(values, step, checkpoints)
                    values = {name: float(value) for name, value in values.items()}
                    writer.write(step, values)
                    note = note_values(values)
                bar.advance(note=note, per_step=config.train.batch_size)
                epoch, rest = divmod(step, steps_per_epoch)
                if rest or (epoch % config.eval.every_epochs and step != num_steps):
                    continue
                check_finite(values, step, checkpoints)
                done = evaluate.run_evaluation(
                    eval_step, state.variables, packed, parts[select_on], config, mesh
                )
                scores = metrics.pooled_scores(done.counts, config.data.classes)
                writer.write(step, scores.named(select_on))
                logs.say(f"epoch {epoch}: {select_on} Dice {report.percent(scores.mean_dice)} %")
                checkpoints.save(step, state, iterator, scores.mean_dice or 0.0)
