"""The thread that owns the model: clicks first, then the displayed slice, then the rest."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from usam_jax.utils import console
from usam_jax.utils.errors import UsageError, UserError
from usam_jax.viewer.case import Case
from usam_jax.viewer.session import Refused
from usam_jax.viewer.slice_state import Prompts

if TYPE_CHECKING:
    from usam_jax.predict import Predictor
    from usam_jax.viewer.model import SliceModel

Job = Callable[[], None]


class NotReady(Exception):
    """The model is not loaded, or there is none."""


class Superseded(Exception):
    """Newer prompts of the same slice have replaced a request."""


class Answer(NamedTuple):
    """Time to predict a slice in ms, and whether its last click replaces an earlier one."""

    decode_ms: float
    replaces: bool


class Worker:
    """Predicts for the open case in one thread, one slice at a time.

    `model` is none, loading, ready or failed; `problem` says what failed last, else "".
    """

    def __init__(self, load_fn: "Callable[[], Predictor] | None") -> None:
        self.load_fn = load_fn
        self.model, self.problem = "loading" if load_fn else "none", ""
        self.predictor: Predictor | None = None
        self.slices: SliceModel | None = None
        self.case: Case | None = None
        self.clicks: dict[int, tuple[Prompts, Future[Answer]]] = {}
        self.shown = 0
        self.wanted: int | None = None  # the displayed slice, to be encoded ahead
        self.propagation: Iterator[tuple[int, np.ndarray]] | None = None
        self.progress: tuple[str, int, int, int, int] | None = (
            None  # what, group, source, done, total
        )
        self.automatic_on, self.working, self.closed = False, False, False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.run, name="worker", daemon=True)
        self.thread.start()

    # Called from other threads.

    def open(self, case: Case) -> None:
        """Make a case the one that is predicted."""
        with self.changed:
            self.case, self.slices = case, None
            self.shown = case.source.hu.shape[0] // 2
            self.automatic_on = not case.session.has_automatic.all()
            self.changed.notify_all()

    def leave(self) -> None:
        """Stop all work on the case and wait for the slice that is being predicted."""
        with self.changed:
            self.case = self.slices = self.wanted = None
            self.stop()
            for _, future in self.clicks.values():
                fail(future, Superseded("another volume was opened"))
            self.clicks.clear()
            self.changed.wait_for(lambda: not self.working)

    def predict(self, number: int, prompts: Prompts) -> "Future[Answer]":
        """Queue the prompts of a slice.

        Raises NotReady without a loaded model, and UsageError if it takes no prompts.
        """
        with self.changed:
            predictor = self.require_predictor()
            predictor.network.require_promptable("prompts")
            future: Future[Answer] = Future()
            older = self.clicks.pop(number, None)
            if older:
                fail(older[1], Superseded(f"newer prompts of slice {number}"))
            self.clicks[number] = prompts, future
            self.shown = number
            self.changed.notify_all()
            return future

    def expect(self, prompts: dict[int, Prompts]) -> None:
        """Queue prompts of several slices, even while the model is loading."""
        with self.changed:
            for number, given in prompts.items():
                future: Future[Answer] = Future()
                future.add_done_callback(self.report_failure)
                self.clicks[number] = given, future
            self.changed.notify_all()

    def report_failure(self, future: "Future[Answer]") -> None:
        """Report the error of a request for which nobody waits."""
        if (error := future.exception()) and not isinstance(error, Superseded):
            assert isinstance(error, Exception)
            self.report(error)

    def show(self, number: int) -> None:
        """Encode the displayed slice ahead of a click."""
        with self.changed:
            self.shown = self.wanted = number
            self.changed.notify_all()

    def propagate(self, source: int, first: int, last: int) -> None:
        """Start to propagate the labels of a slice. Raises NotReady or UsageError."""
        with self.changed:
            predictor = self.require_predictor()
            predictor.network.require_promptable("propagation")
            if self.progress:
                raise UsageError("propagate: got a second propagation; stop the first one")
            slices = self.require_slices()
            self.propagation = slices.propagate(source, first, last)
            self.progress = "propagation", time.time_ns(), source, 0, last - first
            self.changed.notify_all()

    def stop(self) -> None:
        """Stop the propagation after the slice that is being predicted."""
        with self.changed:
            self.propagation = self.progress = None

    def busy(self) -> dict[str, Any] | None:
        """Return what is in progress, with the slices done and in total, or None."""
        with self.changed:
            if self.model == "loading":
                return {"what": "loading the model", "done": 0, "total": 0}
            if self.progress:
                what, _, _, done, total = self.progress
                return {"what": what, "done": done, "total": total}
            if self.automatic_on and self.case and self.model == "ready":
                done_of = self.case.session.has_automatic
                return {"what": "automatic mask", "done": int(done_of.sum()), "total": done_of.size}
            return None

    @property
    def promptable(self) -> bool:
        """Whether the loaded model takes prompts."""
        return self.predictor is not None and self.predictor.network.promptable

    @property
    def trained_without_prompts(self) -> bool:
        """Whether the loaded model takes prompts but has never seen one."""
        network = self.predictor.network if self.predictor else None
        return bool(network and network.promptable and network.config["prompts"]["kind"] == "none")

    def close(self) -> None:
        """End the thread after the slice that is being predicted."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join(timeout=10)

    # Called in the worker's thread.

    def require_predictor(self) -> "Predictor":
        """Return the loaded model. Raises NotReady if there is none."""
        if self.predictor is None:
            reasons = {
                "none": "there is no model: the viewer was started without --checkpoint",
                "failed": f"the model could not be loaded: {self.problem}",
            }
            raise NotReady(reasons.get(self.model, "the model is still loading"))
        return self.predictor

    def require_slices(self) -> "SliceModel":
        """Return the model for the open case."""
        from usam_jax.viewer.model import SliceModel

        predictor = self.require_predictor()
        if self.slices is None:
            assert self.case
            self.slices = SliceModel(predictor, self.case)
        self.slices.cache.center = self.shown
        return self.slices

    def run(self) -> None:
        """Load the model, then do one job after the other until the worker is closed."""
        if self.load_fn:
            try:
                self.predictor = self.load_fn()
                self.model = "ready"
            except Exception as error:  # noqa: BLE001 (the page shows it)
                self.report(error)
                self.model = "failed"
        while True:
            with self.changed:
                self.working = False
                self.changed.notify_all()
                job = None
                while not self.closed and not (job := self.next_job()):
                    self.changed.wait()
                if job is None:
                    return
                self.working = True
            try:
                job()
            except Exception as error:  # noqa: BLE001 (the page shows it)
                self.report(error)
                with self.changed:
                    self.stop()
                    self.automatic_on = False

    def report(self, error: Exception) -> None:
        """Show an error in the page and in the terminal, with the traceback of an unexpected one."""
        self.problem = str(error) or type(error).__name__
        console.info(f"error: {self.problem}")
        if not isinstance(error, UserError):
            traceback.print_exception(error)

    def next_job(self) -> Job | None:
        """Return the most urgent job, or None."""
        if not (self.case and self.predictor):
            return None
        slices, case = self.require_slices(), self.case
        if self.clicks:
            number = next(iter(self.clicks))
            prompts, future = self.clicks.pop(number)
            return lambda: answer(slices, case, number, prompts, future)
        if self.wanted is not None:
            wanted, self.wanted = self.wanted, None
            if self.promptable:
                return lambda: slices.prepare(wanted)
        if self.propagation and self.progress:
            propagation = self.propagation
            return lambda: self.propagate_one(case, propagation)
        missing = np.flatnonzero(~case.session.has_automatic)
        if self.automatic_on and missing.size:
            nearest = int(missing[np.abs(missing - self.shown).argmin()])
            return lambda: self.predict_one(slices, case, nearest)
        return None

    def propagate_one(self, case: Case, propagation: Iterator[tuple[int, np.ndarray]]) -> None:
        """Propagate to one more slice, if the propagation has not been stopped meanwhile."""
        found = next(propagation, None)
        with self.changed:
            if self.propagation is not propagation or not self.progress:
                return
            if found is None:
                self.stop()
                return
            what, group, source, done, total = self.progress
            self.progress = what, group, source, done + 1, total
            case.session.set_propagated(found[0], found[1], source, group)

    def predict_one(self, slices: "SliceModel", case: Case, number: int) -> None:
        """Predict the automatic mask of one slice, and keep the mask when it is complete."""
        case.session.set_automatic(number, slices.automatic(number))
        if case.session.has_automatic.all():
            self.automatic_on = False
            case.keep_automatic()


def fail(future: "Future[Answer]", error: Exception) -> None:
    """Hand an error to who waits for a request, if anyone still does."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def answer(
    slices: "SliceModel", case: Case, number: int, prompts: Prompts, future: "Future[Answer]"
) -> None:
    """Predict a slice for its prompts, and hand the answer or the error to who waits.

    The prompts count even if the page that sent them is gone.
    """
    start = time.monotonic()
    try:
        labels = slices.predict(number, prompts, case.session.slice_state(number))
        case.session.set_prompts(number, prompts, labels)
    except (UserError, Refused) as error:
        fail(future, error)
    except Exception as error:
        fail(future, error)
        raise
    else:
        if future.set_running_or_notify_cancel():
            spent_ms = (time.monotonic() - start) * 1000
            future.set_result(Answer(spent_ms, slices.replaces(prompts)))
