"""A full /dev/shm, which holds locks and batches of processes, is not a full disk."""

import pathlib
import signal
import traceback

SHARED_MEMORY = pathlib.Path("/dev/shm")
USERS = ("multiprocessing.synchronize", "multiprocessing.shared_memory")
FULL = (
    f"{SHARED_MEMORY} is full, which holds what processes share (not the disk). Delete what other "
    "programs left there, enlarge it (docker run --shm-size=1g) or set config.data.num_workers=0, and "
    "run the same command again."
)


def is_from_shared_memory(error: OSError) -> bool:
    """Whether the file or lock of an error lies in /dev/shm. Locks have no file name."""
    if error.filename and SHARED_MEMORY in pathlib.Path(str(error.filename)).parents:
        return True
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") in USERS for frame in frames)


def killed_by_shared_memory(worker_error: str) -> bool:
    """Whether a data worker died of SIGBUS: it wrote to shared memory that has no space left."""
    return f"exit code {-signal.SIGBUS}." in worker_error
