"""Training throughput: speed, waiting time for data and device memory."""

import contextlib
import time
from collections.abc import Iterator

import jax


class Meter:
    """Slices per second, and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start a new measurement, so that an evaluation in between does not count."""
        self.since, self.waited, self.steps = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Add the time in this context to the time spent waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def count(self) -> None:
        """Count one training step."""
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Return the metrics `speed/...` and start a new measurement.

        The peak device memory, in GB, is included if the backend reports it.
        """
        passed = max(time.monotonic() - self.since, 1e-9)
        metrics = {
            "speed/slices_per_second": self.steps * self.batch_size / passed,
            "speed/data_wait": self.waited / passed,
        }
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            metrics["speed/device_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        self.restart()
        return metrics
