"""Training: the step, and the loop that orders data, step, evaluation and checkpoints."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import checkpoint, evaluate, logs, losses, metrics, optim, weights
from usam_jax.data import pipeline
from usam_jax.data.prepare import Packed, prepare
from usam_jax.errors import DataError, UsageError, UserError
from usam_jax.models import USam, init_variables, make_model
from usam_jax.sharding import check_batch_size, make_mesh, over_batch, put_batch, replicated

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
    config: ConfigDict, steps_per_epoch: int, mesh: Mesh
) -> tuple[USam, TrainState, TrainStep]:
    """The model of a config, its state before the first step, and the step."""
    model = make_model(config.model)
    variables = jax.jit(lambda key: init_variables(model, key))(jax.random.key(config.seed))
    variables = weights.load_initial(config, variables)
    warmup = math.ceil(steps_per_epoch / 2) if config.optimizer.warmup else 0
    factor_fn = optim.polynomial_decay(config.train.num_epochs * steps_per_epoch, warmup)
    rates = optim.learning_rates(config.optimizer, variables["params"])
    tx = optim.make_optimizer(config.optimizer, factor_fn, variables["params"])

    def rates_fn(step: Any) -> dict[str, Any]:
        return {f"lr/{part}": rate * factor_fn(step) for part, rate in rates.items()}

    state = create_state(model, tx, variables, mesh)
    return model, state, make_train_step(model, tx, rates_fn, mesh)


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UsageError for settings that contradict each other or the machine."""
    check_batch_size(config.train.batch_size, mesh, "config.train.batch_size")
    check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")
    if len(config.data.classes) != config.model.num_classes:
        raise UsageError(
            f"config.model.num_classes: found {config.model.num_classes}, expected the number of "
            f"config.data.classes, {len(config.data.classes)} (background counts)"
        )
    if config.eval.select_on not in ("val", "test"):
        raise UsageError(
            f"config.eval.select_on: found {config.eval.select_on!r}, expected val or test"
        )
    for field in ("train.num_epochs", "train.log_every_steps", "eval.every_epochs"):
        section, name = field.split(".")
        if config[section][name] < 1:
            raise UsageError(f"config.{field}: found {config[section][name]}, expected 1 or more")


def select_rows(packed: Packed, config: ConfigDict) -> tuple[str, np.ndarray]:
    """The packed split and rows on which the best epoch is chosen."""
    rows = pipeline.split_rows(packed, config.data, config.eval.select_on)[config.eval.select_on]
    split = "test" if config.eval.select_on == "test" else "train"
    labels = packed.labels(split)
    if not any(labels[row].any() for row in rows):
        raise DataError(
            f"{packed.folder}: the {len(rows)} slices for choosing the best epoch hold no labelled "
            "pixel; change config.data.val_fraction or set config.eval.select_on=test"
        )
    return split, rows


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to the last epoch, going on from the workdir's last checkpoint if there is one."""
    mesh = make_mesh()
    check_config(config, mesh)
    checkpoint.claim_workdir(workdir, config)
    packed = prepare(config.data)
    rows = pipeline.split_rows(packed, config.data, config.eval.select_on)
    select_split, selected = select_rows(packed, config)
    iterator, steps_per_epoch = pipeline.train_batches(
        packed, rows["train"], config, jax.process_index(), jax.process_count()
    )
    model, state, train_step = make_training(config, steps_per_epoch, mesh)
    eval_step = evaluate.make_eval_step(model, mesh)
    checkpoints = checkpoint.Checkpoints(workdir)
    first = checkpoints.latest_step or 0
    num_steps = config.train.num_epochs * steps_per_epoch
    if first:
        target = checkpoint.abstract_arrays(state, replicated(mesh))
        state = checkpoints.restore(first, target, iterator)
        logs.say(f"going on from step {first} of {num_steps} in {workdir}")
    logs.say(
        f"{len(rows['train'])} slices to train on, {len(selected)} to choose the best epoch on; "
        f"{steps_per_epoch} steps an epoch; {mesh.size} x {jax.devices()[0].device_kind}"
    )
    writer = logs.MetricWriter(workdir, first)
    with logs.Progress("training", num_steps, "steps", first) as bar:
        for step in range(first + 1, num_steps + 1):
            state, values = train_step(state, put_batch(next(iterator), mesh))
            note = ""
            if step % config.train.log_every_steps == 0 or step == num_steps:
                values = {name: float(value) for name, value in values.items()}
                if not math.isfinite(values["train/loss"]):
                    raise UserError(
                        f"the loss is {values['train/loss']} at step {step}; the last good "
                        f"checkpoint is that of step {checkpoints.latest_step} in {workdir}. Try "
                        "lower config.optimizer.learning_rates, or config.model.dtype=float32."
                    )
                writer.write(step, values)
                rates = " ".join(f"{values[x]:.1e}" for x in values if x.startswith("lr/"))
                note = f"loss {values['train/loss']:.4f}  lr {rates}"
            bar.advance(note=note, per_step=config.train.batch_size)
            epoch, rest = divmod(step, steps_per_epoch)
            if rest == 0 and (epoch % config.eval.every_epochs == 0 or step == num_steps):
                done = evaluate.run_evaluation(
                    eval_step, state.variables, packed, select_split, selected, config, mesh
                )
                scores = metrics.pooled_scores(done.counts, config.data.classes)
                writer.write(step, logs.name_scores("val", scores.dice, scores.mean_dice))
                mean = scores.mean_dice or 0.0
                logs.say(f"epoch {epoch}: validation Dice {mean:.4f}")
                checkpoints.save(step, state, iterator, mean)
    checkpoints.close()
    writer.close()
