"""The training step: state and batch in, the next state and its figures out, on any mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax.evaluation.inference import batch_images, batch_prompts
from usam_jax.models import USam
from usam_jax.training import losses
from usam_jax.training.optimizer import FROZEN
from usam_jax.utils.mesh import batch_sharding, place_state, replicated

TrainStep = Callable[["TrainState", dict[str, Any]], tuple["TrainState", dict[str, Any]]]


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the constants that go with it.

    `ema` holds averaged parameters and BatchNorm statistics, or nothing where none are kept. A step
    whose loss or gradient is not finite changes no parameter; `num_skipped` counts those,
    `last_skipped` is the last.
    """

    step: Any  # int32[]: the steps done
    params: Any
    batch_stats: Any
    constants: Any
    opt_state: Any
    ema: Any
    num_skipped: Any  # int32[]
    last_skipped: Any  # int32[]

    def variables(self, averaged: bool = True) -> dict[str, Any]:
        """What `model.apply` takes, with the averaged parameters where there are some."""
        named = {
            "params": self.params,
            "batch_stats": self.batch_stats,
            "constants": self.constants,
            **(self.ema if averaged else {}),
        }
        return {name: tree for name, tree in named.items() if tree}


def build_state(
    tx: optax.GradientTransformation, variables: dict[str, Any], train: ConfigDict
) -> TrainState:
    """The state before the first step."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        batch_stats=stats,
        constants=variables["constants"],
        opt_state=tx.init(params),
        ema={"params": params, "batch_stats": stats} if train.ema_decay else {},
        num_skipped=zero,
        last_skipped=zero,
    )


def placed_state(
    tx: optax.GradientTransformation, shapes: dict[str, Any], mesh: Mesh, train: ConfigDict
) -> TrainState:
    """The state as abstract arrays that know where on the mesh they lie."""
    state = jax.eval_shape(lambda x: build_state(tx, x, train), shapes)
    return place_state(state, mesh, train.fsdp)


def create_state(
    tx: optax.GradientTransformation,
    variables: dict[str, Any],
    target: TrainState,
    train: ConfigDict,
) -> TrainState:
    """The state before the first step, placed as `target` is."""
    placed = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(lambda x: build_state(tx, x, train), out_shardings=placed)(variables)


def make_train_step(
    model: USam,
    tx: optax.GradientTransformation,
    rates_fn: Callable[[Any], dict[str, Any]],
    mesh: Mesh,
    train: ConfigDict,
    target: TrainState,
) -> TrainStep:
    """Jitted (state, batch) -> state, figures; the batch is split over the mesh's devices.

    BatchNorm and Dice see the whole batch, or with `train.statistics` "device" one device's share
    each, as published; with `train.grad_accum_steps` a that many equal parts of it, one after the other.
    The state given is used up.
    """
    placed = jax.tree.map(lambda x: x.sharding, target)
    groups = mesh.size if train.statistics == "device" else 1

    def group_loss(params: Any, variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        logits, changed = model.apply(
            {**variables, "params": params},
            batch_images(batch["image"]),
            batch_prompts(batch),
            train=True,
            mutable=["batch_stats"],
        )
        loss, parts = losses.segmentation_loss(logits, batch["label"].astype(jnp.int32))
        return loss, ({"loss": loss, **parts}, changed.get("batch_stats", {}))

    def loss_fn(params: Any, variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        if groups == 1:
            return group_loss(params, variables, batch)
        split = {x: y.reshape(groups, -1, *y.shape[1:]) for x, y in batch.items()}
        out = jax.vmap(group_loss, in_axes=(None, None, 0))(params, variables, split)
        return jax.tree.map(lambda x: x.mean(0), out)

    def gradients(state: TrainState, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Gradients, figures and BatchNorm statistics of a batch."""
        variables = state.variables(averaged=False)
        if train.fsdp:  # gathers these; XLA would rather gather activations
            variables = jax.lax.with_sharding_constraint(variables, replicated(mesh))

        def one(stats: Any, part: dict[str, Any]) -> tuple[Any, tuple[Any, Any]]:
            given = {**variables, **({"batch_stats": stats} if stats else {})}
            grads, (figures, stats) = jax.grad(loss_fn, has_aux=True)(
                variables["params"], given, part
            )
            return stats, (grads, figures)

        if train.grad_accum_steps == 1:
            stats, (grads, figures) = one(state.batch_stats, batch)
            return grads, figures, stats

        def add(carry: Any, part: dict[str, Any]) -> tuple[Any, None]:
            stats, sums = carry
            stats, found = one(stats, part)
            return (stats, jax.tree.map(jnp.add, sums, found)), None

        parts = {x: split_evenly(y, mesh.size, train.grad_accum_steps) for x, y in batch.items()}
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        sums = (zeros, {"loss": 0.0, "ce": 0.0, "dice": 0.0})
        (stats, sums), _ = jax.lax.scan(add, (state.batch_stats, sums), parts)
        grads, figures = jax.tree.map(lambda x: x / train.grad_accum_steps, sums)
        return grads, figures, stats

    def update(state: TrainState, grads: Any, stats: Any) -> TrainState:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if train.ema_decay:
            new = {"params": params, "batch_stats": stats}
            # In this form what does not change stays as it is, to the last bit.
            ema = jax.tree.map(lambda a, b: a + (1 - train.ema_decay) * (b - a), ema, new)
        return dataclasses.replace(
            state, params=params, batch_stats=stats, opt_state=opt_state, ema=ema
        )

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        grads, figures, stats = gradients(state, batch)
        norms = {
            f"grad_norm/{part}": optax.tree.norm(x) for part, x in grads.items() if part != FROZEN
        }
        values = (
            {f"train/{name}": x for name, x in figures.items()}
            | norms
            | rates_fn(state.step - state.num_skipped)
        )
        good = jnp.isfinite(figures["loss"]) & jnp.isfinite(optax.tree.norm(grads))
        # A choice of each array's old or new numbers would keep both.
        state = jax.lax.cond(good, update, lambda state, *_: state, state, grads, stats)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            num_skipped=state.num_skipped + ~good,
            last_skipped=jnp.where(good, state.last_skipped, state.step + 1),
        ), values | {"train/skipped": state.num_skipped + ~good}

    return jax.jit(
        train_step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


def split_evenly(x: Any, num_devices: int, parts: int) -> Any:
    """[b ...] to [parts b/parts ...]; each part takes its slices from every device's share."""
    by_device = x.reshape(num_devices, parts, -1, *x.shape[1:])
    return by_device.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])
