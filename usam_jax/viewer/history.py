"""Undo and redo of all actions, as states of slices before and after."""

from typing import NamedTuple

from usam_jax.viewer.slice_state import SliceState


class Action(NamedTuple):
    """One step of undo.

    `what` is in words, `number` the slice to show, and `changes` the states before and after by
    slice. Actions of the same `group` are one step.
    """

    what: str
    number: int
    changes: dict[int, tuple[SliceState, SliceState]]
    group: int | None = None


def merge(first: Action, second: Action) -> Action:
    """Return two actions of a group as one."""
    changes = dict(first.changes)
    for number, (before, after) in second.changes.items():
        earliest = changes[number][0] if number in changes else before
        changes[number] = earliest, after
    return first._replace(changes=changes)


class History:
    """The actions that can be undone and redone."""

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.undone: list[Action] = []

    def push(self, action: Action) -> None:
        """Add an action. What was undone cannot be redone afterwards."""
        found = None if self.undone else self.find_group(action)
        if found is None:
            self.done.append(action)
        else:
            self.done[found] = merge(self.done[found], action)
        self.undone.clear()

    def find_group(self, action: Action) -> int | None:
        """Return the index of the step that an action continues, or None.

        Steps in between, such as clicks during a propagation, must have changed other slices.
        """
        if action.group is None:
            return None
        for i in range(len(self.done) - 1, -1, -1):
            if self.done[i].group == action.group:
                return i
            if self.done[i].changes.keys() & action.changes.keys():
                return None
        return None

    def undo(self) -> Action | None:
        """Return the last action and make it redoable, or None if there is none."""
        if not self.done:
            return None
        self.undone.append(self.done.pop())
        return self.undone[-1]

    def redo(self) -> Action | None:
        """Return the action that was undone last and make it undoable, or None."""
        if not self.undone:
            return None
        self.done.append(self.undone.pop())
        return self.done[-1]
