"""Score whole cases from predicted slices, on threads while the device predicts others."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from usam_jax.data.case import files_unchanged
from usam_jax.data.packed.format import Packed
from usam_jax.data.pixels import fitted_shape, unfit_square
from usam_jax.evaluation.case_metrics import ClassScore, Scoring, score_case
from usam_jax.io.nifti import read_labels
from usam_jax.utils.errors import DataError

MAX_WORKERS = 8


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """The scores of one case, one per foreground class in the order of the classes.

    A file is None if the labels do not come from one, as for packed slices.
    """

    name: str
    patient: str | None
    reference_file: str | None
    prediction_file: str | None
    scores: list[ClassScore]


def has_sources(packed: Packed, split: str) -> bool:
    """Whether every case of a split comes from a label volume that still exists.

    Raises DataError if one of them has changed since it was packed.
    """
    cases = packed.cases(split)
    if not all(x["label_file"] and pathlib.Path(x["label_file"]).is_file() for x in cases):
        return False
    for case in cases:
        path = pathlib.Path(case["label_file"])
        if not files_unchanged([path], case["stamp"][-3:], case.get("digests", [])[-1:]):
            raise DataError(
                f"{path}: has another content than when it was packed",
                "pack the data set again (python -m tools.prepare SOURCE DEST), or restore the file",
            )
    return True


class CaseScorer:
    """Collect the predictions of several prompt modes slice by slice and score each whole case.

    Cases are scored on the voxels of their label volumes if all of these exist (`on_source`), else
    on the packed slices. A context manager, which holds only a few cases in memory at a time.
    """

    def __init__(self, packed: Packed, split: str, scoring: Scoring) -> None:
        self.packed, self.split, self.scoring = packed, split, scoring
        self.on_source = has_sources(packed, split)
        self.case_of = np.repeat(
            np.arange(len(packed.cases(split))), [x["num_slices"] for x in packed.cases(split)]
        )
        self.labels = packed.labels(split)
        self.slices: dict[str, list[np.ndarray]] = {}
        self.running: collections.deque[Future[dict[str, CaseResult]]] = collections.deque()
        self.results: dict[str, list[CaseResult]] = {}
        self.num_workers = min(MAX_WORKERS, os.cpu_count() or 1)
        self.pool = ThreadPoolExecutor(self.num_workers)

    def add(self, row: int, predictions: dict[str, np.ndarray]) -> None:
        """Add the next slice: its classes uint8[h w] by mode. Cases must be whole and in order."""
        for mode, predicted in predictions.items():
            self.slices.setdefault(mode, []).append(predicted)
        case = self.packed.cases(self.split)[self.case_of[row]]
        if row == case["row"] + case["num_slices"] - 1:
            volumes = {mode: np.stack(slices) for mode, slices in self.slices.items()}
            self.slices = {}
            self.running.append(self.pool.submit(self.score, case, volumes))
            if len(self.running) > 2 * self.num_workers:
                self.collect()

    def score(
        self, case: dict[str, Any], predictions: dict[str, np.ndarray]
    ) -> dict[str, CaseResult]:
        geometry, size = case["geometry"], self.labels.shape[-1]
        rows = slice(case["row"], case["row"] + case["num_slices"])
        truth, spacing, source = np.asarray(self.labels[rows]), None, None
        restore: Callable[[np.ndarray], np.ndarray] = np.asarray
        if geometry:
            depth, *pixel_mm = geometry["spacing_mm"]
            shape, pixel_mm = tuple(geometry["shape"][1:]), tuple(pixel_mm)
            side = fitted_shape(shape, size, pixel_mm)[2]
            spacing = (depth, side, side)
            if self.on_source:
                spacing, source = (depth, *pixel_mm), case["label_file"]
                # By the affine of the CT, which turned the slices that were predicted.
                truth = read_labels(
                    pathlib.Path(source), len(self.scoring.classes), np.array(geometry["affine"])
                )
                restore = functools.partial(unfit_square, shape=shape, pixel_mm=pixel_mm)
        results = {}
        for mode, slices in predictions.items():
            predicted = np.stack([restore(x) for x in slices])
            scores = score_case(truth, predicted, spacing, self.scoring)
            results[mode] = CaseResult(case["name"], case["patient"], source, None, scores)
        return results

    def collect(self) -> None:
        for mode, result in self.running.popleft().result().items():
            self.results.setdefault(mode, []).append(result)

    def finish(self) -> dict[str, list[CaseResult]]:
        """Wait for all cases and return their results, by mode."""
        while self.running:
            self.collect()
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.pool.shutdown(cancel_futures=True)
