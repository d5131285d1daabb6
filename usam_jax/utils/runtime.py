"""The process around a run: hosts, the compilation cache, and signals that ask it to stop."""

import ctypes
import os
import pathlib
import platform
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from usam_jax.utils import console
from usam_jax.utils.errors import UsageError
from usam_jax.utils.workdir import Workdir

HEARTBEAT_S = 30  # a process that is silent for so long is taken for dead
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "usam_jax" / "jax"


def enable_compilation_cache() -> None:
    """Compiled programs are kept in the user's cache, unless JAX_COMPILATION_CACHE_DIR says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(CACHE))


def keep_memory() -> None:
    """Lets a step on a CPU have the last one's memory again; to be called before devices start.

    Without it the system clears the pages of each step's gigabytes anew. It is glibc's allocator
    that is told so; without glibc nothing changes. Only the main thread's allocations are kept
    whatever their size, so programs on a CPU run there, not in the background. Of use to one
    process with one device: with several, JAX has other threads run them.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        mallopt, max_maps, trim_threshold = ctypes.CDLL(None).mallopt, -4, -1  # as in malloc.h
        mallopt(max_maps, 0)  # all comes from the heap,
        mallopt(trim_threshold, -1)  # whose end is never given back


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Makes this process one of several, by flags or as the cluster's environment says.

    Raises UsageError where they do not find each other.
    """
    given = (coordinator, num_processes, process_id)
    if all(x is None for x in given) and not in_cluster():
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the processes of this run did not find each other: {error}\nExpected --coordinator="
            "HOST:PORT, --num_processes and --process_id, or none of them under Slurm"
        ) from error
    console.console.quiet = jax.process_index() > 0  # all would say the same


def is_main_process() -> bool:
    """If this is the process that writes files."""
    return jax.process_index() == 0


def in_cluster() -> bool:
    """If a cluster's environment says that there are several processes."""
    several = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1  # of srun, not of the job
    return several or "JAX_COORDINATOR_ADDRESS" in os.environ


class Profile:
    """Writes a trace of some steps, first to last, for TensorBoard; a context. (0, 0): of none."""

    def __init__(self, steps: tuple[int, int], workdir: pathlib.Path) -> None:
        self.first, self.last = steps
        self.folder, self.running = Workdir(workdir).tensorboard, False

    def before(self, step: int) -> None:
        """To be called before each step."""
        wanted = self.first <= step <= self.last
        if wanted and not self.running:
            jax.profiler.start_trace(str(self.folder))
        elif self.running and not wanted:
            self.stop()
        self.running = wanted

    def stop(self) -> None:
        jax.profiler.stop_trace()
        console.info(f"steps from {self.first} on are profiled in {self.folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.running:
            self.stop()


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a wish to stop after the step; a second Ctrl-C stops at once.

    With several processes all stop after the same step, whichever of them got SIGTERM.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> Self:
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        self.before = {x: signal.signal(x, self.receive) for x in signals}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # for the processes to agree on a step

    def after(self, step: int) -> str | None:
        """The signal that asks to stop after `step`, if one did."""
        if jax.process_count() > 1:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self.received
