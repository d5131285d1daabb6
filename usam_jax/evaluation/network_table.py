"""Statistics of a comparison of networks: a row per network, over seeds and patients."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from usam_jax import models
from usam_jax.data.class_names import MEAN
from usam_jax.evaluation import published_results
from usam_jax.evaluation.comparison import compare, holm_correction
from usam_jax.evaluation.stored import Evaluation, from_summary
from usam_jax.evaluation.summary import RESAMPLES, SEED, bootstrap_counts, mean
from usam_jax.evaluation.sweep import Run
from usam_jax.utils.errors import DataError
from usam_jax.utils.files import load_json
from usam_jax.utils.workdir import EvaluationFolder, Workdir

# Fields of a run's result that all seeds of a network share.
SHARED = ("parameters", "flop", "epochs", "steps", "batch_size", "image_size")


class Finished(NamedTuple):
    """The finished runs of one network: results of `network_run.run_network`, by seed.

    `window` is the number of slices that the network predicts from one input.
    """

    name: str
    network: str
    window: int
    seeds: list[int]
    results: list[dict[str, Any]]
    folders: list[EvaluationFolder]

    def summaries(self) -> list[dict[str, Any]]:
        """The summaries of the evaluations, by seed."""
        return [load_json(x.summary) for x in self.folders]


def find_finished(
    workdir: pathlib.Path, runs: list[Run], results: dict[str, dict[int, dict[str, Any]]]
) -> list[Finished]:
    """Return the networks of a sweep that have a finished run, in the order of `runs`."""
    found: dict[str, Finished] = {}
    for run in runs:
        if result := results.get(run.name, {}).get(run.seed):
            model = run.config.model
            new = Finished(run.name, model.name, models.predicted_slices(model), [], [], [])
            one = found.setdefault(run.name, new)
            one.seeds.append(run.seed)
            one.results.append(result)
            folder = Workdir(run.folder(workdir))
            one.folders.append(folder.evaluation(result["split"], result["mode"]))
    return list(found.values())


def make_table(
    finished: list[Finished], against: str | None, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the table of a comparison, ready for JSON.

    Pooled Dice and IoU are means over the seeds with their standard deviation. The interval of the
    mean Dice is over patients, or over cases if the data set does not name patients. Each network
    is compared with the network `against` on the Dice of the cases, averaged over seeds; None
    compares none. `left_out` names runs of the sweep without a result. Raises DataError if the
    runs were evaluated on different cases.
    """
    summaries = {x.name: x.summaries() for x in finished}
    first = summaries[finished[0].name][0]
    classes, kind = tuple(first["classes"]), finished[0].results[0]["kind"]
    paper = published_results.rows_by_network(kind, classes, first["split"])
    averaged = {x.name: average(x.name, summaries[x.name], x.folders) for x in finished}
    rows = []
    for one in finished:
        row = describe(one, summaries[one.name])
        row["paper"] = paper.get((row["network"], row["mode"]))
        if against in averaged and one.name != against:
            compared = compare(averaged[against], averaged[one.name], "Dice")["classes"][MEAN]
            fields = ("n", "a", "b", "difference", "ci95", "p")
            row["against"] = {x: compared[x] for x in fields}
        rows.append(row)
    tested = [x for x in rows if x["against"]]
    corrected = holm_correction([x["against"]["p"] for x in tested])
    for row, p in zip(tested, corrected, strict=True):
        row["against"]["p_holm"] = p
    return {
        "schema_version": 1,
        "classes": list(classes),
        "split": first["split"],
        "num_slices": first["num_slices"],
        "num_cases": first["num_cases"],
        "resampled": resampled(first),
        "num_resampled": int(case_groups(first).max()) + 1,
        "interval": {"level": 0.95, "resamples": RESAMPLES, "seed": SEED},
        "against": against if against in averaged else None,
        "left_out": list(left_out),
        "rows": rows,
    }


def describe(one: Finished, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a network without the tests."""
    differing = [x for x in SHARED if len({result[x] for result in one.results}) > 1]
    if differing:
        raise DataError(
            f"{one.name}: {', '.join(differing)} differ between the seeds {one.seeds}",
            "give another --workdir",
        )
    speeds = ("predicted_per_second", "trained_per_second")
    row = {
        "name": one.name,
        "network": pathlib.Path(one.network).stem,
        "window": one.window,
        "mode": one.results[0]["mode"],
        "prompts": summaries[0]["prompts"],
        "seeds": one.seeds,
        "ci95": pooled_interval(summaries),
        **{x: one.results[0][x] for x in SHARED},
        **{x: float(np.median([result[x] for result in one.results])) for x in speeds},
        "seconds": sum(x["seconds"] for x in one.results),
        "devices": sorted({x["devices"] for x in one.results}),
        "against": None,
    }
    for metric in ("dice", "iou"):
        pooled = [x["pooled"][metric] for x in one.results]
        row[metric] = {name: over_seeds([x[name] for x in pooled]) for name in pooled[0]}
    return row


def over_seeds(values: list[float | None]) -> dict[str, float | None]:
    """Return mean and standard deviation of the values that are defined, None with too few."""
    found = [x for x in values if x is not None]
    sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return {"mean": mean(values), "sd": sd}


def case_groups(summary: dict[str, Any]) -> np.ndarray:
    """Return a number per case, int[c], equal for cases of one patient if all are known."""
    cases = summary["metric_per_case"]
    patients = [x["patient"] for x in cases]
    owners = [x["case"] for x in cases] if None in patients else patients
    return np.unique(owners, return_inverse=True)[1]


def resampled(summary: dict[str, Any]) -> str:
    """Return what an interval resamples: patients, slices (cases of one slice each) or cases."""
    if None not in [x["patient"] for x in summary["metric_per_case"]]:
        return "patients"
    return "slices" if summary["num_cases"] == summary["num_slices"] else "cases"


def pooled_interval(summaries: list[dict[str, Any]]) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of the pooled mean Dice over patients.

    Each resample of patients (or cases, see `case_groups`) is scored for every seed, and the seeds
    are averaged. None with fewer than two patients.
    """
    groups = case_groups(summaries[0])
    count = int(groups.max()) + 1
    if count < 2:
        return None
    sums = np.zeros((len(summaries), count, len(summaries[0]["classes"]) - 1, 3))
    for seed, summary in enumerate(summaries):
        for group, case in zip(groups, summary["metric_per_case"], strict=True):
            sums[seed, group] += [case["pixels"][x] for x in sorted(case["pixels"], key=int)]
    drawn = np.einsum("rg,sgkt->rskt", bootstrap_counts(count), sums)
    with np.errstate(invalid="ignore"):  # a class that no drawn patient has is 0 / 0
        dice = 2 * drawn[..., 0] / (2 * drawn[..., 0] + drawn[..., 1] + drawn[..., 2])
        defined = np.isfinite(dice)
        means = np.where(defined, dice, 0).sum((1, 2)) / defined.sum((1, 2))
    return np.nanpercentile(means, [2.5, 97.5]).tolist()


def average(
    name: str, summaries: list[dict[str, Any]], folders: list[EvaluationFolder]
) -> Evaluation:
    """Return the evaluation of a network with the Dice of each case averaged over the seeds.

    The status of a case is that of the first seed.
    """
    read = [from_summary(x, y.path) for x, y in zip(summaries, folders, strict=True)]
    first = read[0]
    scores = {
        case: {
            number: {
                "Dice": mean([x.scores[case][number]["Dice"] for x in read]),
                "status": score["status"],
            }
            for number, score in found.items()
        }
        for case, found in first.scores.items()
    }
    return dataclasses.replace(first, source=name, scores=scores)
