"""Reading and writing files.

A file is written under a temporary name, then renamed.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from usam_jax.utils.errors import UsageError, UserError


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path to write to: renamed to `path` on success, deleted on failure."""
    temporary = path.with_name(
        f".tmp.{path.name}"
    )  # writers choose a format by the suffix, such as .nii.gz
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file, or an empty dict if it does not exist.

    Raises UserError if it is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({error}), expected JSON. Delete it and start again."
        ) from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    with atomic_write(path) as temporary:
        # JSON in ASCII: names of files that are not UTF-8 are escaped, and read back the same.
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write text as UTF-8. Names of files that are not UTF-8 keep their bytes."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def write_csv(path: pathlib.Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a header and rows as CSV, encoded as by `write_text`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def require_folder(folder: pathlib.Path) -> None:
    """Create a folder if it does not exist. Raises UsageError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be created ({error}). Give another folder.") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: is not writable. Give another folder.")


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
