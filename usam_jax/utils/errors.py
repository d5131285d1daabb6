"""The errors that a user can fix, each with the exit code that scripts rely on."""

import errno

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


def list_some(items: list[str], limit: int = 20) -> str:
    """`items` as indented lines.

    After `limit` items, only the number of the others.
    """
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)
