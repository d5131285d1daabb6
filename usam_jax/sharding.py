"""Where arrays live: a `data` mesh over the devices, batches split over it, the state on each."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from usam_jax.errors import UsageError


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with the one axis `data` over all devices, or the first `num_devices`."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises UsageError for a batch that cannot be split evenly over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UsageError(
            f"{field}: found {batch_size}, expected a positive multiple of the {mesh.size} devices"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's share of a batch, as arrays over all devices."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
