"""A full /dev/shm is named, and a full disk still is."""

import errno
import multiprocessing
import multiprocessing.synchronize

import pytest

from usam_jax.training import feed
from usam_jax.utils import cli
from usam_jax.utils.errors import UserError

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def make_lock() -> None:
    multiprocessing.get_context("spawn").Lock()


def write_file(path: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", path)


@pytest.mark.parametrize(
    ("fail_fn", "exit_code", "text"),
    [
        (make_lock, 1, "/dev/shm is full"),
        (lambda: write_file("/dev/shm/psm_1"), 1, "/dev/shm is full"),
        (lambda: write_file("/data/runs/x"), 5, "the disk is full"),
    ],
)
def test_run_names_what_is_full(monkeypatch, capsys, fail_fn, exit_code, text):
    def no_space(*_arguments):
        raise NO_SPACE

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", no_space)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    found = cli.run(lambda *_: fail_fn(), ["test"], needs_config=False)
    assert found == exit_code and text in capsys.readouterr().err


@pytest.mark.parametrize(("number", "text"), [(-7, "/dev/shm is full"), (-9, "memory is short")])
def test_next_batch_says_why_a_worker_died(number, text):
    def batches():
        raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {number}.")
        yield

    with pytest.raises(UserError, match=text):
        feed.next_batch(batches())
