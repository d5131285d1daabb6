"""Files that are either whole or not there: written under a temporary name, then renamed."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from usam_jax.utils.errors import UsageError, UserError


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path to write to; it becomes `path` if nothing fails, and is gone if it does."""
    temporary = path.with_name(f".tmp.{path.name}")  # savers choose by the ending, .nii.gz too
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The file's content, or nothing where there is no such file.

    Raises UserError where it is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and start again") from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Raises ValueError for NaN, which JSON has not."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def require_folder(folder: pathlib.Path) -> None:
    """Makes a folder where there is none. Raises UsageError where it cannot be, or not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error}); give another folder") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: may not be written to; give another folder")


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
