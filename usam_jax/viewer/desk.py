"""The work list of a viewer, of which one volume is open."""

import pathlib
from collections.abc import Sequence
from typing import Any

from usam_jax.utils import console
from usam_jax.utils.errors import UserError
from usam_jax.viewer.case import Case, Model, Paths
from usam_jax.viewer.worker import Worker


class Desk:
    """Volumes by number, one of them open, and the worker that predicts for it.

    `points` is a points file for the first volume, read when its session is new.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[Paths],
        classes: Sequence[str],
        worker: Worker,
        model: Model | None = None,
        series: str | None = None,
        fresh: bool = False,
        points: pathlib.Path | None = None,
    ) -> None:
        self.names, self.paths, self.classes = tuple(names), tuple(paths), tuple(classes)
        self.worker, self.model, self.series, self.fresh = worker, model, series, fresh
        self.points = points
        self.number = 0
        self.opened: set[int] = set()
        self.case: Case | None = None

    def open(self, number: int) -> Case:
        """Open a volume, and close the one that is open.

        Raises UserError if it cannot be opened; the one that was open is then opened again.
        """
        before = self.number
        self.close_case()
        try:
            self.case = self.make_case(number)
        except BaseException:
            if number != before:
                self.case, self.number = self.make_case(before), before
                self.worker.open(self.case)
            raise
        self.number = number
        self.worker.open(self.case)
        self.give_points(self.case)
        return self.case

    def open_first(self) -> Case:
        """Open the first volume that can be opened, and print why others could not.

        Raises UserError if none can be.
        """
        for number, name in enumerate(self.names):
            self.number = number  # so that `open` does not go back to one that cannot be opened
            try:
                return self.open(number)
            except UserError as error:
                if number + 1 == len(self.names):
                    raise
                console.info(f"{name} cannot be opened: {error}")
        raise AssertionError("a work list has a volume")

    def give_points(self, case: Case) -> None:
        """Prompt a new session with the points file. Raises UsageError if it does not fit."""
        if self.points is None or self.model is None:
            return
        if case.session.slices:
            case.warnings.append(
                f"{self.points} was not read, since the earlier session continues; --fresh starts again"
            )
            return
        from usam_jax.viewer.model import read_points  # imports JAX

        self.worker.expect(read_points(self.points, case.geometry, self.model))

    def make_case(self, number: int) -> Case:
        """Read a volume. Only its first opening may set an earlier session aside."""
        fresh = self.fresh and number not in self.opened
        case = Case(self.paths[number], self.classes, self.model, self.series, fresh)
        self.opened.add(number)
        return case

    def close_case(self) -> None:
        """Close the open volume, if any, and print where it is kept."""
        case, self.case = self.case, None
        if case is None:
            return
        self.worker.leave()
        session = case.session
        saved = session.saved_revision == session.revision
        problem = case.close()
        if problem:
            console.info(f"error: {problem}")
        elif not saved and (session.history.done or session.history.undone):
            console.info(
                f"not saved as a mask yet: the edits are kept in {case.autosave.folder}; the same "
                "command continues"
            )

    def describe(self) -> list[dict[str, Any]]:
        """Return name and progress of each volume."""
        return [
            {"name": name, "saved": paths.mask.exists(), "open": number == self.number}
            for number, (name, paths) in enumerate(zip(self.names, self.paths, strict=True))
        ]

    def close(self) -> None:
        """Close the open volume and the worker."""
        self.close_case()
        self.worker.close()
