"""The folder MASK.view, in which a session survives crashes: identity, lock, journal, masks."""

import fcntl
import os
import pathlib
from typing import Any

import numpy as np

from usam_jax.io.volume_files import volume_name
from usam_jax.utils.errors import DataError, UsageError, reading
from usam_jax.utils.files import atomic_write, load_json, require_folder, write_json
from usam_jax.viewer.journal import Journal

SAME = ("source", "shape", "classes")  # a session cannot be continued if one of these differs
FRESH = "Give another -o, or start with --fresh, which keeps the folder under another name."


def folder_of(mask: pathlib.Path) -> pathlib.Path:
    """The autosave folder of a mask."""
    return mask.with_name(f"{volume_name(mask)}.view")


class Autosave:
    """The open autosave folder of one mask, locked against a second viewer.

    `notes` say what was restored. Raises UsageError if the folder belongs to another CT or to
    other classes or is in use, and DataError if it is damaged.
    """

    def __init__(self, mask: pathlib.Path, identity: dict[str, Any], fresh: bool = False) -> None:
        self.folder = folder_of(mask)
        require_folder(self.folder)
        self.lock_file = lock(self.folder)
        try:
            if fresh:
                self.lock_file = self.set_aside()
            self.notes: list[str] = []
            self.earlier: list[str] = []
            self.check_identity(identity)
            self.journal = Journal(self.folder / "journal.jsonl")
        except BaseException:
            os.close(self.lock_file)
            raise
        if self.journal.entries:
            count = len(self.journal.entries)
            self.notes.append(f"restored {count} action{'s'[: count > 1]} from {self.folder}")
        if self.journal.note:
            self.notes.append(self.journal.note)

    def set_aside(self) -> int:
        """Rename the folder to MASK.view.1 or the next free number, and make and lock a new one."""
        if not any(x.name != ".lock" for x in self.folder.iterdir()):
            return self.lock_file
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.{number}")).exists():
            number += 1
        self.folder.rename(aside)
        os.close(self.lock_file)
        require_folder(self.folder)
        return lock(self.folder)

    def check_identity(self, identity: dict[str, Any]) -> None:
        """Write the identity of a new session, or compare it with that of the earlier one."""
        path = self.folder / "session.json"
        if not path.exists():
            write_json(path, identity)
            return
        saved = load_json(path)
        if not isinstance(saved, dict) or not {*SAME, "affine", "checkpoint"} <= saved.keys():
            raise DataError(f"{path}: is not the description of a session", FRESH)
        self.earlier = list(saved.get("earlier", []))
        for name in SAME:
            if saved[name] != identity[name]:
                raise UsageError(
                    f"{path}: got {name} {identity[name]}, expected {saved[name]} as in the earlier "
                    f"session. {FRESH}"
                )
        if not np.allclose(saved["affine"], identity["affine"], atol=1e-4):
            raise UsageError(f"{path}: the CT lies elsewhere than in the earlier session. {FRESH}")
        if saved["checkpoint"] != identity["checkpoint"]:
            self.notes.append(
                f"earlier predictions came from {saved['checkpoint'] or 'no checkpoint'}, new ones "
                f"come from {identity['checkpoint'] or 'no checkpoint'}"
            )
            self.earlier += [saved["checkpoint"]] if saved["checkpoint"] else []
            write_json(path, identity | {"earlier": self.earlier})

    def describe_earlier(self) -> str:
        """Return in words, for the end of a sentence, which other checkpoints predicted before."""
        return f"; earlier predictions from {' and '.join(self.earlier)}" if self.earlier else ""

    def read_automatic(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the automatic labels uint8[n h w] and the slices bool[n] that have them."""
        path = self.folder / "automatic.npz"
        if not path.exists():
            return None
        with reading(path, "is damaged", "delete it; the automatic mask is then computed again"):
            with np.load(path, allow_pickle=False) as content:
                labels, done = content["labels"], content["done"]
            if labels.shape != shape or labels.dtype != np.uint8 or done.shape != shape[:1]:
                raise ValueError(f"the shape {labels.shape} instead of {shape}")
        return labels, done

    def write_automatic(self, labels: np.ndarray, done: np.ndarray) -> None:
        """Write the automatic labels. Raises OSError if the disk is full."""
        with atomic_write(self.folder / "automatic.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, labels=labels, done=done)

    def close(self) -> bool:
        """Write what is left and unlock the folder. Returns whether everything is on the disk."""
        complete = self.journal.close()
        os.close(self.lock_file)
        return complete


def lock(folder: pathlib.Path) -> int:
    """Lock a folder for this process, which ends with the process, and return the open file.

    Raises UsageError if another viewer has the lock.
    """
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise UsageError(
            f"{folder}: another viewer is open on this mask. Use its page, or give another -o."
        ) from error
    return file
