"""All files that a command will write, checked before anything is computed."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from usam_jax.utils.errors import UsageError, UserError
from usam_jax.utils.files import read_json


class Output(NamedTuple):
    """A file that a command will write, `what` it is, and the `fix` if it cannot be written.

    `is_own_fn` says whether an existing file is an earlier output of the same kind, which may be
    replaced. It is None if the user named the file.
    """

    path: pathlib.Path
    what: str
    fix: str
    is_own_fn: Callable[[pathlib.Path], bool] | None = None


def check_outputs(outputs: Iterable[Output], inputs: Mapping[pathlib.Path, str]) -> None:
    """Raise UsageError if an output would replace an input, another output or a foreign file.

    `inputs` say what each file is.
    """
    read = {identity(path): what for path, what in inputs.items()}
    written: dict[pathlib.Path, str] = {}
    for path, what, fix, is_own_fn in outputs:
        if source := read.get(identity(path)):
            raise UsageError(f"{path}: is {source}, got it as {what}. {fix}")
        if other := written.get(path.resolve()):
            raise UsageError(f"{path}: got one file as {other} and as {what}. {fix}")
        written[path.resolve()] = what
        if path.is_dir():
            raise UsageError(f"{path}: got a folder as {what}, expected a file. {fix}")
        if is_own_fn and path.exists() and not is_own_fn(path):
            raise UsageError(
                f"{path}: exists and is not {what} that this program wrote, so it is kept. {fix}"
            )


def identity(path: pathlib.Path) -> tuple[int, int] | pathlib.Path:
    """What two paths share if they lead to one file: its device and inode, or the resolved path."""
    try:
        stat = path.stat()
    except OSError:
        return path.resolve()
    return stat.st_dev, stat.st_ino


def is_json_with(*keys: str) -> Callable[[pathlib.Path], bool]:
    """A function that says whether a file is a JSON object with these keys."""

    def is_own(path: pathlib.Path) -> bool:
        try:
            return set(keys) <= read_json(path).keys()
        except (UserError, OSError):
            return False

    return is_own


def starts_with(text: str) -> Callable[[pathlib.Path], bool]:
    """A function that says whether a file starts with `text`, such as the header of a CSV file."""

    def is_own(path: pathlib.Path) -> bool:
        try:
            with path.open("rb") as file:
                return file.read(len(text.encode())) == text.encode()
        except OSError:
            return False

    return is_own
