"""The state of one opened volume: labels in layers, prompts, edits, undo and autosave.

Uses NumPy only. All methods may be called from any thread.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from usam_jax.viewer.history import Action, History
from usam_jax.viewer.journal import Journal, damaged
from usam_jax.viewer.slice_state import (
    EMPTY,
    NO_PROMPTS,
    UNTOUCHED,
    Prompts,
    SliceState,
    changes_from_json,
    changes_to_json,
    compose,
    pack,
    unpack,
)


class Refused(Exception):
    """An action that the state does not allow, such as a stroke on a locked slice."""


class Session:
    """Labels uint8[n h w] of a volume and everything that changes them.

    Four layers per slice, of which the topmost counts: brush edits, the prediction for prompts,
    a propagated prediction, and the automatic one. `revision` grows with every change.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: Sequence[str],
        ml_per_voxel: float = 1.0,
        journal: Journal | None = None,
    ) -> None:
        self.shape, self.classes, self.ml_per_voxel = shape, tuple(classes), ml_per_voxel
        self.automatic = np.zeros(shape, np.uint8)
        self.has_automatic = np.zeros(shape[0], bool)
        self.labels = np.zeros(shape, np.uint8)
        self.counts = np.zeros((shape[0], len(self.classes)), np.int64)
        self.counts[:, 0] = shape[1] * shape[2]
        self.slices: dict[int, SliceState] = {}
        self.history = History()
        self.revision = self.saved_revision = 0
        self.changed_at = np.zeros(shape[0], np.int64)
        self.lock = threading.RLock()
        self.journal: Journal | None = None
        if journal:
            self.replay(journal)
            self.journal = journal

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Height and width of a slice."""
        return self.shape[1], self.shape[2]

    def slice_state(self, number: int) -> SliceState:
        """Return the state of a slice."""
        return self.slices.get(number, EMPTY)

    def labels_of(self, number: int) -> np.ndarray:
        """Return a copy of the labels uint8[h w] of a slice."""
        with self.lock:
            return self.labels[number].copy()

    # Actions, each of which is one step of undo.

    def set_prompts(self, number: int, prompts: Prompts, labels: np.ndarray | None) -> None:
        """Set a slice's prompts and their prediction uint8[h w], None without prompts."""
        with self.lock:
            before = self.require_unlocked(number)
            predicted = None if labels is None else pack(labels)
            after = before._replace(prompts=prompts, predicted=predicted)
            what = describe_prompts(before.prompts, prompts, self.classes)
            self.apply(f"{what} on slice {number}", number, {number: after})

    def set_propagated(self, number: int, labels: np.ndarray, source: int, group: int) -> None:
        """Set a propagated prediction uint8[h w]. All of one `group` are one step of undo."""
        with self.lock:
            after = self.require_unlocked(number)._replace(propagated=pack(labels))
            self.apply(f"propagation from slice {source}", source, {number: after}, group)

    def paint(self, number: int, corner: tuple[int, int], mask: np.ndarray, label: int) -> None:
        """Paint `label` where `mask` bool[h w], which starts at `corner` (x, y), is true.

        Label 0 erases. Raises Refused if the slice is locked or the mask leaves it.
        """
        x, y = corner
        h, w = mask.shape
        with self.lock:
            before = self.require_unlocked(number)
            if x < 0 or y < 0 or x + w > self.shape[2] or y + h > self.shape[1]:
                raise Refused(f"box: got {[x, y, w, h]}, expected a box inside the slice")
            if before.edits is None:
                edits = np.full(self.plane_shape, UNTOUCHED, np.uint8)
            else:
                edits = unpack(before.edits, self.plane_shape).copy()
            edits[y : y + h, x : x + w][mask] = label
            what = f"brush ({self.classes[label]})" if label else "eraser"
            after = before._replace(edits=pack(edits))
            self.apply(f"{what} on slice {number}", number, {number: after})

    def clear(self, number: int, layer: str) -> None:
        """Clear the `edits` of a slice, or its `prompts` with the predictions from prompts."""
        with self.lock:
            before = self.require_unlocked(number)
            if layer == "prompts":
                after = before._replace(prompts=NO_PROMPTS, predicted=None, propagated=None)
            else:
                after = before._replace(edits=None)
            self.apply(f"clear {layer} of slice {number}", number, {number: after})

    def set_locked(self, number: int, locked: bool) -> None:
        """Lock a slice against changes, or unlock it."""
        with self.lock:
            after = self.slice_state(number)._replace(locked=locked)
            what = "lock" if locked else "unlock"
            self.apply(f"{what} slice {number}", number, {number: after})

    def undo(self) -> Action | None:
        """Undo the last action and return it, or None."""
        return self.step(self.history.undo, "undo", 0)

    def redo(self) -> Action | None:
        """Redo what was undone last and return it, or None."""
        return self.step(self.history.redo, "redo", 1)

    # What changes labels without being an action.

    def set_automatic(self, number: int, labels: np.ndarray) -> None:
        """Set the automatic prediction uint8[h w] of a slice."""
        with self.lock:
            self.automatic[number] = labels
            self.has_automatic[number] = True
            self.refresh([number])

    def set_all_automatic(self, labels: np.ndarray, done: np.ndarray | None = None) -> None:
        """Set the automatic prediction uint8[n h w] of the slices `done` bool[n], or of all.

        For labels that were read from a file: they count as saved if all was saved before.
        """
        with self.lock:
            done = np.ones(self.shape[0], bool) if done is None else done
            was_saved = self.saved_revision == self.revision
            self.automatic[done] = labels[done]
            self.has_automatic |= done
            self.refresh(np.flatnonzero(done).tolist())
            if was_saved:
                self.saved_revision = self.revision

    def mark_saved(self, revision: int) -> None:
        """Record that the labels of `revision` are exported."""
        with self.lock:
            self.saved_revision = revision
            if self.journal:
                self.journal.append({"saved": revision == self.revision})

    # The machinery.

    def require_unlocked(self, number: int) -> SliceState:
        """Return the state of a slice. Raises Refused if it is locked."""
        state = self.slice_state(number)
        if state.locked:
            raise Refused(f"slice {number} is locked; unlock it first (L)")
        return state

    def apply(
        self, what: str, number: int, states: dict[int, SliceState], group: int | None = None
    ) -> None:
        """Replace the states of slices as an action, unless nothing changes."""
        changes = {
            i: (self.slice_state(i), after)
            for i, after in states.items()
            if after != self.slice_state(i)
        }
        if not changes:
            return
        self.history.push(Action(what, number, changes, group))
        self.put({i: after for i, (_, after) in changes.items()})
        if self.journal:
            fields = {str(i): changes_to_json(*pair) for i, pair in changes.items()}
            entry = {"action": what, "slice": number, "group": group, "changes": fields}
            self.journal.append(entry)

    def step(self, move: Callable[[], Action | None], name: str, side: int) -> Action | None:
        """Undo or redo an action."""
        with self.lock:
            action = move()
            if action:
                self.put({i: pair[side] for i, pair in action.changes.items()})
                if self.journal:
                    self.journal.append({name: True})
            return action

    def put(self, states: dict[int, SliceState]) -> None:
        """Replace the states of slices and their labels."""
        for i, state in states.items():
            if state == EMPTY:
                self.slices.pop(i, None)
            else:
                self.slices[i] = state
        self.refresh(list(states))

    def refresh(self, numbers: list[int]) -> None:
        """Compute the labels of slices again from their layers."""
        self.revision += 1
        for i in numbers:
            self.labels[i] = compose(self.automatic[i], self.slice_state(i))
            self.counts[i] = np.bincount(self.labels[i].ravel(), minlength=len(self.classes))
            self.changed_at[i] = self.revision

    def replay(self, journal: Journal) -> None:
        """Repeat the actions of a journal. Raises DataError if one is damaged."""
        for i, entry in enumerate(journal.entries, start=1):
            try:
                self.replay_entry(entry)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise damaged(journal.path, i, repr(error)) from error

    def replay_entry(self, entry: dict[str, Any]) -> None:
        """Repeat one entry."""
        if "undo" in entry or "redo" in entry:
            if not (self.undo() if "undo" in entry else self.redo()):
                raise ValueError("nothing to undo or redo")
        elif "saved" in entry:
            self.saved_revision = self.revision if entry["saved"] else self.revision - 1
        else:
            states = {}
            for key, fields in entry["changes"].items():
                i = int(key)
                if not 0 <= i < self.shape[0]:
                    raise ValueError(f"slice {i} of {self.shape[0]}")
                states[i] = changes_from_json(self.slice_state(i), fields, self.plane_shape)
            self.apply(entry["action"], int(entry["slice"]), states, entry["group"])


def describe_prompts(before: Prompts, after: Prompts, classes: Sequence[str]) -> str:
    """Return in words how prompts changed."""
    if after == NO_PROMPTS:
        return "remove the prompts"
    if after.box != before.box:
        return "box" if after.box else "remove the box"
    added = [x for x in after.points if x not in before.points]
    if not added:
        return "remove a point"
    c = added[-1][2]
    return f"point ({classes[c]})" if c else "negative point"
