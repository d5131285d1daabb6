"""Compare two evaluations of the same cases, pair by pair: differences are B - A."""

import pathlib
from typing import Any

import numpy as np
from scipy import stats

from usam_jax.data.case import natural_order
from usam_jax.data.class_names import MEAN
from usam_jax.evaluation.stored import SOFT_SETTINGS, Evaluation
from usam_jax.evaluation.summary import (
    LOWER_IS_BETTER,
    RESAMPLES,
    SEED,
    bootstrap,
    mean,
)
from usam_jax.utils.errors import DataError, UsageError, list_some
from usam_jax.utils.files import write_csv, write_json
from usam_jax.utils.outputs import Output, check_outputs, is_json_with, starts_with

NUM_CHANGED = 10
COLUMNS = ("case", "class", "metric", "a", "b", "difference")


def require_comparable(a: Evaluation, b: Evaluation, metric: str) -> None:
    """Raise DataError if the metrics of two evaluations are not comparable."""
    names = [{"classes": x.names} if x.names else {} for x in (a, b)]
    one, other = a.settings | names[0], b.settings | names[1]
    for field in one.keys() & other.keys():
        if one[field] != other[field]:
            raise DataError(
                f"{field} differs: {one[field]} in {a.source}, {other[field]} in {b.source}",
                "evaluate or score both with the same settings",
            )
    for side, against in ((a, b), (b, a)):
        if alone := sorted(side.scores.keys() - against.scores.keys(), key=natural_order):
            raise DataError(
                f"{len(alone)} cases of {side.source} are not in {against.source}:\n"
                f"{list_some(alone)}\nEvaluate both on the same cases."
            )
    numbers = [sorted({n for found in x.scores.values() for n in found}) for x in (a, b)]
    if numbers[0] != numbers[1]:
        raise DataError(
            f"classes differ: {numbers[0]} in {a.source}, {numbers[1]} in {b.source}",
            "evaluate or score both with the same settings",
        )
    for side in (a, b):
        if any(metric not in x for found in side.scores.values() for x in found.values()):
            raise UsageError(f"--metric={metric}: {side.source} does not have it; try Dice or IoU")


def find_warnings(a: Evaluation, b: Evaluation) -> list[str]:
    """Warnings that a reader of the comparison needs."""
    found = []
    for field in SOFT_SETTINGS:
        x, y = a.soft_settings.get(field), b.soft_settings.get(field)
        if x != y and None not in (x, y):
            found.append(f"{field} differs: {x} in A, {y} in B")
    patients = [x for x in case_patients(a, b).values() if x is not None]
    if len(set(patients)) < len(patients):
        found.append("some cases are of one patient; the p-values treat all cases as independent")
    return found


def case_patients(a: Evaluation, b: Evaluation) -> dict[str, str | None]:
    """The patient of each case, None if neither evaluation knows it."""
    return {case: a.patients[case] or b.patients[case] for case in a.scores}


def pair_cases(a: Evaluation, b: Evaluation, metric: str) -> list[dict[str, Any]]:
    """A row per case and class: case, class, metric, a, b, difference and both statuses."""
    rows = []
    names = a.names or b.names
    for case in sorted(a.scores, key=natural_order):
        for number in sorted(a.scores[case], key=natural_order):
            x, y = a.scores[case][number], b.scores[case][number]
            row = make_row(case, names.get(number, f"class {number}"), metric, x[metric], y[metric])
            rows.append(row | {"a_status": x["status"], "b_status": y["status"]})
    return rows


def make_row(case: str, name: str, metric: str, a: float | None, b: float | None) -> dict[str, Any]:
    difference = None if a is None or b is None else b - a
    return {"case": case, "class": name, "metric": metric, "a": a, "b": b, "difference": difference}


def mean_rows(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """A row per case with the means over the classes that have a value in A and in B."""
    kept: dict[str, list[dict[str, Any]]] = {row["case"]: [] for row in rows}
    for row in rows:
        if row["difference"] is not None:
            kept[row["case"]].append(row)
    return [
        make_row(case, MEAN, metric, *(mean([x[side] for x in found]) for side in ("a", "b")))
        for case, found in kept.items()
    ]


def compare_pairs(rows: list[dict[str, Any]], patients: dict[str, str | None]) -> dict[str, Any]:
    """Statistics over the rows of one class.

    `left_out` counts the rows without a value in A, B or both, `one_sided` those without a value in
    one of them. `p` is that of the two-sided Wilcoxon signed-rank test of the differences, None if
    all are 0.
    """
    kept = [x for x in rows if x["difference"] is not None]
    one_sided = [x for x in rows if (x["a"] is None) != (x["b"] is None)]
    result: dict[str, Any] = {
        "n": len(kept),
        "left_out": len(rows) - len(kept),
        "one_sided": len(one_sided),
    }
    if not kept:
        fields = ("a", "b", "difference", "ci95", "median_difference", "p")
        return result | dict.fromkeys(fields) | {"b_better": 0, "equal": 0, "a_better": 0}
    difference = np.array([x["difference"] for x in kept])
    known = [patients[x["case"]] for x in kept]
    owners = [
        f"case {x['case']}" if patient is None else f"patient {patient}"
        for x, patient in zip(kept, known, strict=True)
    ]
    gain = -difference if kept[0]["metric"] in LOWER_IS_BETTER else difference
    return result | {
        "a": mean([x["a"] for x in kept]),
        "b": mean([x["b"] for x in kept]),
        "difference": float(difference.mean()),
        "ci95": bootstrap(difference, np.unique(owners, return_inverse=True)[1]),
        "median_difference": float(np.median(difference)),
        "b_better": int((gain > 0).sum()),
        "equal": int((gain == 0).sum()),
        "a_better": int((gain < 0).sum()),
        "p": float(stats.wilcoxon(difference).pvalue) if difference.any() else None,
    }


def holm_correction(p_values: list[float | None]) -> list[float | None]:
    """Holm's correction over the p-values that are not None."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[i] = largest
    return corrected


def compare(a: Evaluation, b: Evaluation, metric: str) -> dict[str, Any]:
    """Compare a metric of two evaluations.

    The result is ready for JSON.

    Raises DataError if the evaluations are not comparable, UsageError if one lacks the metric.
    """
    require_comparable(a, b, metric)
    patients, rows = case_patients(a, b), pair_cases(a, b, metric)
    names = dict.fromkeys(x["class"] for x in rows)
    by_class = {name: [x for x in rows if x["class"] == name] for name in names}
    classes = {name: compare_pairs(found, patients) for name, found in by_class.items()}
    corrected = holm_correction([x["p"] for x in classes.values()])
    for statistics, p in zip(classes.values(), corrected, strict=True):
        statistics["p_holm"] = p
    classes[MEAN] = compare_pairs(mean_rows(rows, metric), patients)
    changed = sorted((x for x in rows if x["difference"]), key=lambda x: -abs(x["difference"]))
    drawn = "cases" if None in patients.values() else "patients"
    return {
        "schema_version": 1,
        "a": a.source,
        "b": b.source,
        "metric": metric,
        "distance_unit": (b.settings | a.settings).get("distance_unit"),
        "num_cases": len(a.scores),
        "interval": {
            "method": f"percentile bootstrap of the mean difference over {drawn}",
            "level": 0.95,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "p": "two-sided Wilcoxon signed-rank test; p_holm is corrected over the classes, p is not",
        "warnings": find_warnings(a, b),
        "classes": classes,
        "most_changed": changed[:NUM_CHANGED],
        "cases": rows,
    }


def require_own_comparison(folder: pathlib.Path) -> None:
    """Raise UsageError if the folder holds other files under the names of a comparison's."""
    path, fix = folder / "comparison.json", "Give another folder with --out."
    is_own = is_json_with("schema_version", "a", "b", "metric")
    check_outputs(
        [
            Output(path, "a comparison", fix, is_own),
            Output(folder / "comparison.csv", "a table", fix, starts_with(",".join(COLUMNS))),
            Output(folder / "comparison.png", "a plot", fix, lambda _: is_own(path)),
        ],
        {},
    )


def write_comparison(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """Write `comparison.csv` (all pairs) and `comparison.json`."""
    rows = [[row[x] for x in COLUMNS] for row in result["cases"]]
    write_csv(folder / "comparison.csv", COLUMNS, rows)
    write_json(folder / "comparison.json", result)
