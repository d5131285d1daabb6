"""Results of runs that were never made, for the tests of comparisons of networks."""

import json
import pathlib

import numpy as np

from usam_jax.evaluation.case_metrics import Scoring, score_case
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.pixel_counts import pooled_scores, sum_by_case
from usam_jax.evaluation.summary import summarise
from usam_jax.utils.workdir import EvaluationFolder

CLASSES = ("background", "normal rectum", "tumour")
NUM_CASES, DEPTH, SIZE = 6, 2, 24


def make_truth() -> np.ndarray:
    """Labels uint8[c n h w] with a square of each class, of another size in each case."""
    truth = np.zeros((NUM_CASES, DEPTH, SIZE, SIZE), np.uint8)
    for case in range(NUM_CASES):
        truth[case, :, 2:8, 2 : 5 + case] = 1
        truth[case, :, 14:20, 14 : 17 + case] = 2
    return truth


def count(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pixel counts int[n 3 3] of slices uint8[n h w]."""
    rows = []
    for y, p in zip(truth, predicted, strict=True):
        masks = [(p == c, y == c) for c in range(3)]
        rows.append([[(a & b).sum(), (a & ~b).sum(), (~a & b).sum()] for a, b in masks])
    return np.array(rows)


def make_run(
    folder: pathlib.Path, shift: int, patients: list[str | None]
) -> tuple[dict, EvaluationFolder]:
    """Result and evaluation of a run that predicts the truth moved by `shift` pixels."""
    truth = make_truth()
    predicted = np.roll(truth, shift, -1)
    scoring = Scoring(CLASSES, (1.0, 1.0))
    results = [
        CaseResult(f"case_{i}", patients[i], None, None, score_case(y, p, None, scoring))
        for i, (y, p) in enumerate(zip(truth, predicted, strict=True))
    ]
    counts = count(truth.reshape(-1, SIZE, SIZE), predicted.reshape(-1, SIZE, SIZE))
    names = [x.name for x in results for _ in range(DEPTH)]
    scores = pooled_scores(counts, CLASSES)
    pooled = {
        "dice": {**scores.dice, "mean": scores.mean_dice},
        "iou": {**scores.iou, "mean": scores.mean_iou},
    }
    summary = summarise(results, scoring, in_mm=False)
    for case in summary["metric_per_case"]:
        case["pixels"] = sum_by_case(counts, names)[case["case"]]
    about = {"prompts": "none (automatic)", "split": "test", "num_slices": len(counts)}
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary | about | {"pooled": pooled}))
    result = {
        "mode": "none",
        "split": "test",
        "kind": "care",
        "pooled": pooled,
        "parameters": 2_500_000,
        "flop": 3e9,
        "predicted_per_second": 10.0,
        "trained_per_second": 2.0,
        "epochs": 4,
        "steps": 40,
        "batch_size": 8,
        "image_size": SIZE,
        "devices": "cpu, 2 cores",
        "seconds": 60.0,
    }
    return result, EvaluationFolder(folder)


PATIENTS = ["a", "a", "b", "c", "d", "e"]


def make_shown(size: int, names: list[str]) -> dict[str, np.ndarray]:
    truth = np.zeros((len(names), size, size), np.uint8)
    truth[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    predicted = np.roll(truth, size // 8, -1)
    return {"names": np.array(names), "image": truth, "truth": truth, "predicted": predicted}
