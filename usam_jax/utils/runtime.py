"""The process of a run: hosts, compilation cache, memory, profiling and signals."""

import ctypes
import os
import pathlib
import platform
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from usam_jax.utils import console, gpu_driver
from usam_jax.utils.errors import UsageError, UserError
from usam_jax.utils.workdir import Workdir

HEARTBEAT_S = 30  # a process without a heartbeat for so long counts as dead


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache, unless JAX_COMPILATION_CACHE_DIR is set.

    A user without a home, or with one that cannot be written, has no cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder() -> pathlib.Path | None:
    """The folder of compiled programs, which may not exist yet, or None with a note."""
    try:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = base / "usam_jax" / "jax"
        existing = next(x for x in (folder, *folder.resolve().parents) if x.exists())
        problem = "" if os.access(existing, os.W_OK) else f"{existing} cannot be written"
    except (OSError, RuntimeError) as error:  # RuntimeError: neither HOME nor a passwd entry
        problem = str(error)
    if not problem:
        return folder
    console.info(f"no cache of compiled programs: {problem}; set XDG_CACHE_HOME to have one")
    return None


def keep_memory() -> None:
    """Let each CPU step reuse the previous step's memory.

    Call it before JAX starts its devices.

    By default glibc returns freed pages to the system, which clears them again for the next step.
    Without glibc nothing changes. glibc keeps only the main thread's allocations of any size, so
    programs on a CPU are run there and not asynchronously. With several devices JAX runs programs
    on other threads, and this has no effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        mallopt, max_maps, trim_threshold = ctypes.CDLL(None).mallopt, -4, -1  # as in malloc.h
        mallopt(max_maps, 0)  # allocate everything on the heap,
        mallopt(trim_threshold, -1)  # and never return its end


def start_devices() -> None:
    """Start JAX's devices.

    Raises UserError if JAX falls back to the CPU because NVIDIA's driver is too old for its plugin,
    of which JAX itself only warns. JAX_PLATFORMS=cpu asks for the CPU.
    """
    asked = jax.config.values["jax_platforms"]
    if jax.default_backend() == "cpu" and not asked and (found := gpu_driver.problem()):
        raise UserError(found)


def initialize_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the other processes of a run, found by flags or by the cluster's environment.

    Does nothing if neither names any. Raises UsageError if the processes do not find each other.
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
            "HOST:PORT, --num_processes and --process_id, or none of them under Slurm."
        ) from error
    console.console.quiet = jax.process_index() > 0  # all processes would print the same


def is_main_process() -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0


def describe_devices() -> str:
    """Name and number of the accelerators, or the processor's name and its number of cores."""
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def in_cluster() -> bool:
    """Whether the environment of a cluster says that there are several processes."""
    several = (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    )  # of the srun step, not of the job
    return several or "JAX_COORDINATOR_ADDRESS" in os.environ


class Profile:
    """Traces the steps from first to last for TensorBoard.

    A context manager. (0, 0): none.
    """

    def __init__(self, steps: tuple[int, int], workdir: pathlib.Path) -> None:
        self.first, self.last = steps
        self.folder, self.running = Workdir(workdir).tensorboard, False

    def before(self, step: int) -> None:
        """Start or stop the trace.

        Call it before each step.
        """
        wanted = self.first <= step <= self.last
        if wanted and not self.running:
            jax.profiler.start_trace(str(self.folder))
        elif self.running and not wanted:
            self.stop()
        self.running = wanted

    def stop(self) -> None:
        jax.profiler.stop_trace()
        console.info(f"the profile from step {self.first} on is in {self.folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.running:
            self.stop()


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the step.

    A context manager.

    A second Ctrl-C stops at once. If one of several processes gets SIGTERM, all of them stop after
    the same step.
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
            os.kill(os.getpid(), signal.SIGTERM)  # with it the processes agree on a step

    def after(self, step: int) -> str | None:
        """The signal that requested a stop after `step`, or None."""
        if jax.process_count() > 1:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self.received
