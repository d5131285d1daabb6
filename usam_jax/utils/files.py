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

from usam_jax.utils.errors import DataError, UsageError, UserError, reading


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


def load_json(path: pathlib.Path) -> Any:
    """The content of a user's JSON file, in UTF-8, UTF-16 or UTF-32, with or without a BOM.

    Raises DataError, which names the file and the place in it, if it cannot be read.
    """
    with reading(path, "not readable as JSON", "correct it"):
        try:
            return json.loads(path.read_bytes())  # finds out the encoding
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: not JSON in line {error.lineno}, column {error.colno} "
                f"({describe_fault(error)})",
                "correct it",
            ) from error


def describe_fault(error: json.JSONDecodeError) -> str:
    """What is wrong at the place of a JSON error."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if not error.doc.strip():
        return "the file is empty"
    if after[:1] in ("}", "]") and before.endswith(","):
        return f"remove the comma before {after[0]}"
    if after.startswith(",") and after[1:].lstrip()[:1] in ("}", "]"):
        return f"remove the comma before {after[1:].lstrip()[0]}"
    return error.msg


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty dict if the file does not exist.

    Raises UserError if it is damaged.
    """
    try:
        content = load_json(path) if path.is_file() else {}
    except DataError as error:
        raise UserError(f"{error.problem}: damaged. Delete it and start again.") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise UserError(f"{path}: got a {found}, expected an object. Delete it and start again.")
    return content


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
