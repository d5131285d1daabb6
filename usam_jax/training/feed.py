"""Batches on the devices, each copied there while the step before it computes."""

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from usam_jax.data.loader import Batch
from usam_jax.training.throughput import Meter
from usam_jax.utils.errors import UserError
from usam_jax.utils.mesh import shard_batch
from usam_jax.utils.shared_memory import FULL, killed_by_shared_memory


class Feed:
    """The batches of `iterator`, at most one of them ahead of its step.

    `meter` counts the time that the iterator takes.
    """

    def __init__(self, iterator: Iterator[Batch], mesh: Mesh, meter: Meter) -> None:
        self.iterator, self.mesh, self.meter = iterator, mesh, meter
        self.placed: dict[str, Any] | None = None

    def fetch(self) -> None:
        """Start copying the next batch to the devices, if that has not been done.

        Raises what `next_batch` raises.
        """
        if self.placed is None:
            with self.meter.waiting():
                batch = next_batch(self.iterator)
            self.placed = shard_batch(batch, self.mesh)

    def take(self) -> dict[str, Any]:
        """Return the next batch, as arrays over all devices. Raises what `next_batch` raises."""
        self.fetch()
        batch, self.placed = self.placed, None
        assert batch is not None
        return batch


def next_batch(iterator: Iterator[Batch]) -> Batch:
    """Return the next batch. Raises UserError if a data worker was killed.

    Errors that a worker raises itself are passed on unchanged.
    """
    try:
        return next(iterator)
    except RuntimeError as error:
        if "Worker process" not in str(error):
            raise
        memory = "Perhaps memory is short: lower config.data.num_workers and rerun."
        why = FULL if killed_by_shared_memory(str(error)) else memory
        raise UserError(
            f"a process that prepares data was killed ({error}). {why} It resumes from the last "
            "checkpoint."
        ) from error
