"""The append-only autosave: one JSON line per action, written off the caller's path."""

import json
import os
import pathlib
import threading
from typing import Any

from usam_jax.utils.errors import DataError, reading

RETRY_S = 2.0  # after a write failed, such as on a full disk


def read_entries(path: pathlib.Path) -> tuple[list[dict[str, Any]], int, int]:
    """Return the entries, the bytes that they take, and the bytes of a torn last line.

    Raises DataError if a line before the last one is damaged.
    """
    with reading(path):
        content = path.read_bytes() if path.exists() else b""
    entries: list[dict[str, Any]] = []
    good = 0
    lines = content.splitlines(keepends=True)
    for i, line in enumerate(lines, start=1):
        entry = parse(line)
        if entry is None and i < len(lines):
            raise damaged(path, i, "not a JSON object")
        if entry is None:
            break
        entries.append(entry)
        good += len(line)
    return entries, good, len(content) - good


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a complete line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def damaged(path: pathlib.Path, number: int, reason: str) -> DataError:
    """The error for a line that cannot be replayed."""
    return DataError(
        f"{path}: line {number} is damaged ({reason}), expected the actions of an earlier session",
        "restore the file, or start with --fresh, which keeps the folder under another name",
    )


class Journal:
    """Appends entries to a file in a thread of its own.

    `problem` says why the last write failed, else ""; the entries are then kept and written later.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.problem = path, ""
        self.entries, self.size, torn = read_entries(path)
        self.note = f"{path.name}: a torn last line of {torn} bytes was skipped" if torn else ""
        self.waiting: list[bytes] = []
        self.changed = threading.Condition()
        self.writing = self.closed = False
        self.thread = threading.Thread(target=self.run, name="journal", daemon=True)
        self.thread.start()

    def append(self, entry: dict[str, Any]) -> None:
        """Queue an entry. Returns at once."""
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self.changed:
            self.waiting.append(line)
            self.changed.notify_all()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all entries are on the disk, and return whether they are."""
        with self.changed:
            idle = self.changed.wait_for(
                lambda: bool(self.problem) or not (self.waiting or self.writing), timeout_s
            )
            return idle and not self.problem

    def close(self) -> bool:
        """Write what is left and stop the thread. Returns whether everything is on the disk."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()
        return not self.waiting

    def run(self) -> None:
        """Write entries until the journal is closed."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.waiting) or self.closed)
                lines, self.writing = list(self.waiting), True
                last = self.closed
            problem = self.write(lines) if lines else ""
            with self.changed:
                if not problem:
                    self.waiting = self.waiting[len(lines) :]
                self.problem, self.writing = problem, False
                self.changed.notify_all()
                if last and (problem or not self.waiting):
                    return
                if problem:
                    self.changed.wait_for(lambda: self.closed, RETRY_S)

    def write(self, lines: list[bytes]) -> str:
        """Append lines after the last complete one, and return what went wrong, else ""."""
        data = b"".join(lines)
        try:
            with self.path.open("ab") as file:
                file.truncate(self.size)  # removes the rest of a failed write and a torn line
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return f"{self.path}: cannot be written ({error.strerror}); edits are kept in memory"
        self.size += len(data)
        return ""
