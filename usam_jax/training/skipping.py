"""How a step leaves the state as it is if its loss or gradient is not finite."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

State = TypeVar("State")
UpdateIf = Callable[..., Any]  # `by_branch` or `by_selection`
GPU_PLATFORMS = ("gpu", "cuda", "rocm")


def update_if(mesh: Mesh) -> UpdateIf:
    """Return `by_selection` for GPUs and `by_branch` for other devices."""
    return by_selection if on_gpus(mesh) else by_branch


def on_gpus(mesh: Mesh) -> bool:
    """Return whether the devices of a mesh are GPUs."""
    return mesh.devices.flat[0].platform in GPU_PLATFORMS


@jax.named_scope("update")
def by_branch(good: Any, update: Callable[..., State], state: State, *changes: Any) -> State:
    """Return `update(state, *changes)`, or `state` if `good` bool[] is false.

    `lax.cond`, not `where`: on CPUs, selecting per array would keep both copies alive.
    """
    return jax.lax.cond(good, update, lambda state, *_: state, state, *changes)


@jax.named_scope("update")
def by_selection(good: Any, update: Callable[..., State], state: State, *changes: Any) -> State:
    """Return what `by_branch` returns, with the choice inside each array's update.

    On a GPU, a branch makes the host wait for the gradients' norm, so that it cannot send the next
    step ahead. The update reads the old values anyway, so choosing moves no bytes.
    """
    new = update(state, *changes)
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
