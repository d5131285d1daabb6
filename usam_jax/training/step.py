"""The jitted training step: (state, batch) -> (state, metrics), on any mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct, traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax.data.loader import IGNORED
from usam_jax.models.common.prompts import batch_images, batch_prompts
from usam_jax.models.common.spec import ModelSpec, merge_params, split_params
from usam_jax.training import compiler_options, losses, skipping
from usam_jax.training.interactive_loss import interactive_loss
from usam_jax.training.norms import norms_for
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import batch_sharding, place_state, replicated

METRICS = ("loss", "ce", "dice")  # of each micro-batch
TrainStep = Callable[["TrainState", dict[str, Any]], tuple["TrainState", dict[str, Any]]]


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the constants of the model.

    `ema` holds averaged parameters and BatchNorm statistics; it is empty if `train.ema_decay` is 0.
    A step whose loss or gradient is not finite is skipped: it changes no parameter. `num_skipped`
    counts the skipped steps and `last_skipped` is the number of the last one.
    """

    step: Any  # int32[], the number of steps done
    params: Any
    batch_stats: Any
    constants: Any
    opt_state: Any
    ema: Any
    num_skipped: Any  # int32[]
    last_skipped: Any  # int32[]

    def variables(self, averaged: bool = True) -> dict[str, Any]:
        """Return the variables for `model.apply`, by default the averaged ones if there are any."""
        named = {
            "params": self.params,
            "batch_stats": self.batch_stats,
            "constants": self.constants,
            **(self.ema if averaged else {}),
        }
        return {name: tree for name, tree in named.items() if tree}


def build_state(
    tx: optax.GradientTransformation, variables: dict[str, Any], train: ConfigDict, spec: ModelSpec
) -> TrainState:
    """Return the state before the first step.

    The optimizer state covers the trainable parameters only.
    """
    params, stats = variables["params"], variables.get("batch_stats", {})
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        batch_stats=stats,
        constants=variables.get("constants", {}),
        opt_state=tx.init(split_params(params, spec)[0]),
        ema={"params": params, "batch_stats": stats} if train.ema_decay else {},
        num_skipped=zero,
        last_skipped=zero,
    )


def placed_state(
    tx: optax.GradientTransformation,
    shapes: dict[str, Any],
    mesh: Mesh,
    train: ConfigDict,
    spec: ModelSpec,
) -> TrainState:
    """Return the initial state as abstract arrays with their shardings on the mesh."""
    state = jax.eval_shape(lambda x: build_state(tx, x, train, spec), shapes)
    return place_state(state, mesh, train.fsdp)


def create_state(
    tx: optax.GradientTransformation,
    variables: dict[str, Any],
    target: TrainState,
    train: ConfigDict,
    spec: ModelSpec,
) -> TrainState:
    """Return the state before the first step, with the shardings of `target`."""
    placed = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(lambda x: build_state(tx, x, train, spec), out_shardings=placed)(variables)


def make_train_step(
    model: nn.Module,
    spec: ModelSpec,
    tx: optax.GradientTransformation,
    rates_fn: Callable[[Any], dict[str, Any]],
    mesh: Mesh,
    train: ConfigDict,
    target: TrainState,
    seed: int,
    rounds: int = 0,
) -> TrainStep:
    """Return the jitted step (state, batch) -> (state, metrics), batches sharded over the mesh.

    A batch holds `image` and `label` as in `data.loader` and the prompts. BatchNorm and Dice use
    the whole batch or, if `train.statistics` is "device", each device's share on its own, as
    published. `train.grad_accum_steps` splits the batch into as many equal micro-batches, which run
    one after the other. Frozen parameters have no gradient. Dropout and simulated clicks depend on
    `seed` and the step alone. With `rounds` above 0, for an interactive network, the loss is the
    weighted mean over the first prediction and those after each of so many simulated clicks. Donates
    `state`.
    """
    placed = jax.tree.map(lambda x: x.sharding, target)
    # Only windows have slices that do not count: of cases shorter than a window.
    segmentation_loss = losses.make_loss(train, IGNORED if spec.dims == 3 else None)
    groups = mesh.size if train.statistics == "device" else 1
    update_if, norms = skipping.update_if(mesh), norms_for(mesh, train.fsdp)

    def loss_of(logits: Any, changed: Any, labels: Any) -> tuple[Any, losses.Terms]:
        """Return the loss of `logits` and of those that the network sowed, and its terms."""
        outputs = {"logits": logits, **sown(changed.get("aux_logits", {}))}
        return losses.weighted_loss(
            outputs, labels, spec.loss_weights, segmentation_loss, spec.label_grid
        )

    def group_loss(
        trainable: Any, variables: Any, batch: dict[str, Any], key: Any
    ) -> tuple[Any, Any]:
        variables = {**variables, "params": merge_params(trainable, variables["params"])}
        if rounds:
            return interactive_loss(model, variables, batch, rounds, key, loss_of)
        logits, changed = model.apply(
            variables,
            batch_images(batch["image"]),
            batch_prompts(batch),
            train=True,
            mutable=["batch_stats", "aux_logits"],
            rngs={"dropout": key} if spec.stochastic else None,
        )
        loss, terms = loss_of(logits, changed, batch["label"].astype(jnp.int32))
        return loss, ({"loss": loss, **terms}, changed.get("batch_stats", {}))

    def loss_fn(trainable: Any, variables: Any, batch: dict[str, Any], key: Any) -> tuple[Any, Any]:
        if groups == 1:
            return group_loss(trainable, variables, batch, key)
        split = {x: y.reshape(groups, -1, *y.shape[1:]) for x, y in batch.items()}
        keys = jax.random.split(key, groups)
        out = jax.vmap(group_loss, in_axes=(None, None, 0, 0))(trainable, variables, split, keys)
        return jax.tree.map(lambda x: x.mean(0), out)

    def gradients(state: TrainState, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return the gradients of the trainable parameters, metrics and BatchNorm statistics."""
        variables = state.variables(averaged=False)
        if train.fsdp:  # Gathers the parameters: left to itself, XLA gathers activations.
            variables = jax.lax.with_sharding_constraint(variables, replicated(mesh))
        trainable, frozen = split_params(variables["params"], spec)
        variables["params"] = frozen
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def one(stats: Any, micro: dict[str, Any], key: Any) -> tuple[Any, tuple[Any, Any]]:
            given = {**variables, **({"batch_stats": stats} if stats else {})}
            grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(trainable, given, micro, key)
            return stats, (grads, metrics)

        if train.grad_accum_steps == 1:
            stats, (grads, metrics) = one(state.batch_stats, batch, key)
            return grads, metrics, stats

        def add(carry: Any, micro_and_key: Any) -> tuple[Any, None]:
            stats, sums = carry
            stats, terms = one(stats, *micro_and_key)
            return (stats, jax.tree.map(jnp.add, sums, terms)), None

        micros = {x: split_evenly(y, mesh.size, train.grad_accum_steps) for x, y in batch.items()}
        zeros = jax.tree.map(jnp.zeros_like, trainable)
        sums = (zeros, dict.fromkeys(METRICS, 0.0))
        keys = jax.random.split(key, train.grad_accum_steps)
        (stats, sums), _ = jax.lax.scan(add, (state.batch_stats, sums), (micros, keys))
        grads, metrics = jax.tree.map(lambda x: x / train.grad_accum_steps, sums)
        return grads, metrics, stats

    def update(state: TrainState, grads: Any, stats: Any) -> TrainState:
        trainable, frozen = split_params(state.params, spec)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        params = merge_params(optax.apply_updates(trainable, updates), frozen)
        ema = state.ema
        if train.ema_decay:
            new = {"params": params, "batch_stats": stats}
            # a + (1 - d)(b - a), not d a + (1 - d) b: exact if a == b.
            ema = jax.tree.map(lambda a, b: a + (1 - train.ema_decay) * (b - a), ema, new)
        return dataclasses.replace(
            state, params=params, batch_stats=stats, opt_state=opt_state, ema=ema
        )

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        grads, metrics, stats = gradients(state, batch)
        of_groups = norms.of_groups(grads, spec)
        values = (
            {f"train/{name}": x for name, x in metrics.items()}
            | {f"grad_norm/{group}": norm for group, norm in of_groups.items()}
            | rates_fn(state.step - state.num_skipped)
        )
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norms.of_all(grads, of_groups))
        state = update_if(good, update, state, grads, stats)
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
        compiler_options=compiler_options.parse(train.compiler_options),
    )


def sown(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays that a network sowed, by path joined with slashes.

    Raises UsageError if a network sows an array more than once.
    """
    flat = traverse_util.flatten_dict(tree, sep="/")
    for name, values in flat.items():
        if len(values) != 1:
            raise UsageError(f"{name}: got {len(values)} sown values, expected 1")
    return {name: values[0] for name, values in flat.items()}


def split_evenly(x: Any, num_devices: int, num_parts: int) -> Any:
    """Reshape [b ...] to [num_parts, b / num_parts, ...].

    Each part takes its slices from every device's share, so that no slice changes its device.
    """
    by_device = x.reshape(num_devices, num_parts, -1, *x.shape[1:])
    return by_device.swapaxes(0, 1).reshape(num_parts, -1, *x.shape[1:])
