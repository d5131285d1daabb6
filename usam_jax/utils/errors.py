"""The errors that a user can fix, each with the exit code that scripts rely on."""

import contextlib
import errno
import pathlib
from collections.abc import Iterator

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class UserError(Exception):
    """An error that the user can fix.

    The message says what was found, expected, and to do.

    Raised itself (exit code 1) for what is none of the kinds below, such as a non-finite loss.
    """

    exit_code = 1


class UsageError(UserError):
    """Wrong usage or configuration (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A data set, slice or volume that cannot be used as it is (exit code 3).

    `problem` says what was found and expected, `fix` what to do.
    """

    exit_code = 3

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}; {fix}" if fix else problem)
        self.problem, self.fix = problem, fix


class SomeFailed(UserError):
    """Some of several outputs failed.

    The others are written (exit code 4).
    """

    exit_code = 4


class WeightsError(UserError):
    """A checkpoint or weight file that cannot be read, used or written (exit code 5)."""

    exit_code = 5


class Stopped(Exception):
    """A run that was asked to stop and has saved its state (exit code 130)."""

    exit_code = 130


@contextlib.contextmanager
def reading(
    path: pathlib.Path, problem: str = "cannot be read", fix: str = "copy it again"
) -> Iterator[None]:
    """Turn any exception of a library that reads a user's file into a DataError that names it.

    Libraries raise nearly any type for damaged files. Errors of the project pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory", "free some memory") from error
    except OSError as error:
        if error.strerror is None:
            raise DataError(f"{path}: {problem} ({describe(error)})", fix) from error
        raise unreadable(path, error) from error
    except Exception as error:
        raise DataError(f"{path}: {problem} ({describe(error)})", fix) from error


def describe(error: Exception) -> str:
    """One line of text for a library's error, which may have several or none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def unreadable(path: pathlib.Path, error: OSError) -> DataError:
    """The error for a file that the operating system does not open or read.

    Raises the DataError for a broken link.
    """
    require_unbroken(path)
    fix = "check the file and its permissions"
    return DataError(f"{path}: cannot be read ({error.strerror})", fix)


def require_unbroken(path: pathlib.Path) -> None:
    """Raise DataError if the path is a link to a file that does not exist."""
    if path.is_symlink() and not path.exists():
        problem = f"{path}: is a broken link to {path.readlink()}"
        raise DataError(problem, "restore the file that it points at, or copy that file here")


def require_file(path: pathlib.Path) -> None:
    """Raise DataError if the path is a broken link, a folder, or a device such as a named pipe."""
    require_unbroken(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise DataError(f"{path}: is {what}, expected a file", "put the file itself there")


def list_some(items: list[str], limit: int = 20) -> str:
    """`items` as indented lines.

    After `limit` items, only the number of the others.
    """
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)
