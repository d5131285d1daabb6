"""The `data` mesh over all devices, and how batches and states lie on it."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from usam_jax.utils.errors import UsageError


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with the one axis `data` over all devices, or the first `num_devices`."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def place_state(shapes: Any, mesh: Mesh, shard: bool) -> Any:
    """Abstract arrays that lie on each device, or with `shard` are split over them.

    An array is split along its longest axis that divides evenly; one without is on each device.
    """

    def place(x: Any) -> jax.ShapeDtypeStruct:
        axes = [i for i, n in enumerate(x.shape) if n and n % mesh.size == 0]
        spec = PartitionSpec()
        if shard and axes:
            longest = max(axes, key=lambda i: x.shape[i])
            spec = PartitionSpec(*(None,) * longest, "data")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raise UsageError for a batch that cannot be split evenly over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UsageError(
            f"{field}: got {batch_size}, expected a positive multiple of the {mesh.size} devices"
        )


def all_processes(flag: bool) -> bool:
    """If `flag` is true in every process.

    All of them have to ask.
    """
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's share of a batch (nested dicts too), as arrays over all devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), batch
    )
