"""Summarise the scores of cases in `summary.json` and `per_case.csv`.

`summary.json` has the fields of nnU-Net's (`metric_per_case`, `mean`, `foreground_mean`, classes by
their number) and more; a value that is not defined is null.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from usam_jax.data.class_names import MEAN
from usam_jax.evaluation.case_metrics import ABSENT, FALSE_ALARM, MISSED, OK, POLICIES, Scoring
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.utils.files import write_csv, write_json
from usam_jax.utils.formatting import VOLUMES
from usam_jax.utils.outputs import Output, check_outputs, is_json_with, starts_with
from usam_jax.utils.workdir import EvaluationFolder

SCHEMA_VERSION = 2
METRICS = ("Dice", "IoU", "HD95", "NSD")
LOWER_IS_BETTER = ("HD95",)
LESIONS = ("lesions", "lesions_found", "lesions_false")
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
RESAMPLES = 2000
SEED = 0
COLUMNS = ("case", "class", "metric", "value", "status")  # of per_case.csv


def summarise(results: list[CaseResult], scoring: Scoring, in_mm: bool) -> dict[str, Any]:
    """All statistics over the cases, ready for JSON.

    `in_mm` says whether their spacing is known.
    """
    names, patients = scoring.classes[1:], patient_numbers(results)
    by_class = {name: [x.scores[i] for x in results] for i, name in enumerate(names)}
    statistics: dict[str, Any] = {}
    for name, scores in by_class.items():
        statistics[name] = count_statuses(scores) | {
            metric: describe([x[metric] for x in scores], patients)
            for metric in (*METRICS, *VOLUMES)
        }
        if name in scoring.lesions:
            statistics[name]["lesions"] = sum_lesions(scores)
    statistics[MEAN] = {
        metric: describe([mean([s[metric] for s in x.scores]) for x in results], patients)
        for metric in METRICS
    }
    numbered = {str(i): scores for i, scores in enumerate(by_class.values(), start=1)}
    means = {
        number: {x: mean([s[x] for s in scores]) for x in (*METRICS, *COUNTS, *VOLUMES)}
        for number, scores in numbered.items()
    }
    clustered = None not in {x.patient for x in results}
    return {
        "schema_version": SCHEMA_VERSION,
        "num_cases": len(results),
        "classes": list(scoring.classes),
        "distance_unit": "mm" if in_mm else "pixels",
        "volume_unit": "ml" if in_mm else "pixels",
        "nsd_tolerance": dict(zip(names, scoring.tolerances, strict=True)),
        "empty_policy": {"name": scoring.policy, "meaning": POLICIES[scoring.policy]},
        "interval": {
            "method": f"percentile bootstrap of the mean over {'patients' if clustered else 'cases'}",
            "level": 0.95,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "cases": statistics,
        "foreground_mean": {x: mean([row[x] for row in means.values()]) for x in means["1"]},
        "mean": means,
        "metric_per_case": [
            {
                "case": x.name,
                "patient": x.patient,
                "prediction_file": x.prediction_file,
                "reference_file": x.reference_file,
                "metrics": {str(i): score for i, score in enumerate(x.scores, start=1)},
            }
            for x in results
        ],
    }


def patient_numbers(results: list[CaseResult]) -> np.ndarray:
    """A number per case, int[n], equal for cases of one patient.

    Unknown patients all differ.
    """
    names = [
        f"case {i}" if x.patient is None else f"patient {x.patient}" for i, x in enumerate(results)
    ]
    return np.unique(names, return_inverse=True)[1]


def mean(values: list[float | None]) -> float | None:
    """The mean of the values that are defined, None if none is."""
    defined = [x for x in values if x is not None]
    return float(np.mean(defined)) if defined else None


def describe(values: list[float | None], patients: np.ndarray) -> dict[str, Any]:
    """Number, mean, standard deviation, median and 95 % interval of the values that are defined."""
    found = np.array([np.nan if x is None else x for x in values], float)
    defined = found[np.isfinite(found)]
    if not defined.size:
        return {"n": 0, "mean": None, "sd": None, "median": None, "ci95": None}
    return {
        "n": defined.size,
        "mean": float(defined.mean()),
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "median": float(np.median(defined)),
        "ci95": bootstrap(found, patients),
    }


def bootstrap(values: np.ndarray, groups: np.ndarray) -> list[float] | None:
    """95 % percentile bootstrap interval of the mean, resampling groups of values.

    `values` float[n] may be NaN; `groups` int[n] numbers the group of each value. None if fewer
    than two groups have a value.
    """
    defined = np.isfinite(values)
    if np.unique(groups[defined]).size < 2:
        return None
    count = int(groups.max()) + 1
    sums = np.bincount(groups[defined], values[defined], count)
    sizes = np.bincount(groups[defined], minlength=count)
    draws = bootstrap_counts(count)
    with np.errstate(invalid="ignore"):  # resamples without a value are 0 / 0
        means = (draws @ sums) / (draws @ sizes.astype(float))
    return np.nanpercentile(means, [2.5, 97.5]).tolist()


@functools.cache
def bootstrap_counts(count: int) -> np.ndarray:
    """How often each of `count` groups is drawn in each resample, float64[RESAMPLES count]."""
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(float)


def count_statuses(scores: list[dict[str, Any]]) -> dict[str, int]:
    """Number of cases by the status of a class."""
    found = [x["status"] for x in scores]
    return {status: found.count(status) for status in (OK, MISSED, FALSE_ALARM, ABSENT)}


def sum_lesions(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of lesions over all cases, of those found and of false ones, and the sensitivity."""
    total, found, false = (sum(x[name] for x in scores) for name in LESIONS)
    sensitivity = found / total if total else None
    return {"total": total, "found": found, "false": false, "sensitivity": sensitivity}


def require_own_results(folder: pathlib.Path) -> None:
    """Raise UsageError if the folder holds results of another program under the same names."""
    paths = EvaluationFolder(folder)
    fix = "Give another folder with --out."
    is_own = is_json_with("schema_version", "metric_per_case")
    check_outputs(
        [
            Output(paths.summary, "a summary", fix, is_own),
            Output(paths.per_case, "a table of cases", fix, starts_with(",".join(COLUMNS))),
        ],
        {},
    )


def write_results(folder: pathlib.Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` and `per_case.csv` (case, class, metric, value, status)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (case["case"], summary["classes"][int(number)], metric, value, score["status"])
        for case in summary["metric_per_case"]
        for number, score in case["metrics"].items()
        for metric, value in score.items()
        if metric != "status"
    ]
    write_csv(EvaluationFolder(folder).per_case, COLUMNS, rows)
    write_json(EvaluationFolder(folder).summary, summary)
