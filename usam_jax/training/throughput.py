"""How fast training is, and what it waits for."""

import contextlib
import time
from collections.abc import Iterator

import jax


class Meter:
    """Speed since the last reading: slices a second, and the share of time waiting for data."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Leaves out what came before, such as an evaluation."""
        self.since, self.waited, self.steps = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def count(self) -> None:
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Figures under `speed/`, with the device's memory where it tells."""
        passed = max(time.monotonic() - self.since, 1e-9)
        figures = {
            "speed/slices_per_second": self.steps * self.batch_size / passed,
            "speed/data_wait": self.waited / passed,
        }
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            figures["speed/device_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        self.restart()
        return figures
