"""Norms of gradients: of each learning-rate group, and of all."""

import collections
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh

from usam_jax.models.common.spec import ModelSpec, group_of
from usam_jax.training.skipping import on_gpus

SMALL = 2**16  # elements of an array
MAX_STACK = 64  # arrays: XLA splits a kernel that has many more operands


class Norms(NamedTuple):
    """How the norms of gradients are computed.

    `of_groups`: (gradients, network) -> float32[] by learning-rate group. `of_all`: (gradients,
    the norms of their groups) -> float32[].
    """

    of_groups: Callable[[dict[str, Any], ModelSpec], dict[str, Any]]
    of_all: Callable[[dict[str, Any], dict[str, Any]], Any]


def norms_for(mesh: Mesh, fsdp: bool) -> Norms:
    """Return `STACKED` for GPUs that all hold the gradients, and `BY_ARRAY` for other devices."""
    return STACKED if on_gpus(mesh) and not fsdp else BY_ARRAY


def grouped(grads: dict[str, Any], spec: ModelSpec) -> dict[str, list[Any]]:
    """Return the arrays of each learning-rate group that has any."""
    by_group: dict[str, list[Any]] = {group: [] for group in spec.groups}
    for path, x in traverse_util.flatten_dict(grads, sep="/").items():
        by_group[str(group_of(path, spec))].append(x)
    return {group: found for group, found in by_group.items() if found}


def by_array(grads: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return the norm float32[] of each group, summed array by array."""
    return {group: optax.tree.norm(found) for group, found in grouped(grads, spec).items()}


def by_stack(grads: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return the norms of `by_array` with small arrays of one shape summed as one stack.

    XLA makes a kernel for each array that it sums, and one for each stack, which it does not write
    (ViT-B: about 180 kernels less, each of which takes longer to start than to run).
    """
    return {
        group: jnp.sqrt(sum(jnp.square(x).sum() for x in stack_small(found)))
        for group, found in grouped(grads, spec).items()
    }


def stack_small(arrays: list[jax.Array]) -> list[jax.Array]:
    """Return `arrays` with those below `SMALL` elements in stacks of one shape and dtype."""
    alike: dict[Any, list[jax.Array]] = collections.defaultdict(list)
    for x in arrays:
        alike[x.shape, x.dtype].append(x)
    found = []
    for (shape, _), same in alike.items():
        size = MAX_STACK if math.prod(shape) < SMALL else 1
        parts = [same[i : i + size] for i in range(0, len(same), size)]
        found += [jnp.stack(x) if len(x) > 1 else x[0] for x in parts]
    return found


BY_ARRAY = Norms(by_array, lambda grads, _: optax.tree.norm(grads))
STACKED = Norms(by_stack, lambda _, by_group: optax.tree.norm(by_group))
