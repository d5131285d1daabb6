"""Choose the slices that the report of an evaluation shows, and write the report."""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np

from usam_jax.data.packed.format import Packed
from usam_jax.data.prompt_modes import PromptMode
from usam_jax.evaluation.case_metrics import Scoring
from usam_jax.evaluation.case_scorer import CaseResult
from usam_jax.evaluation.report import clicks, plots
from usam_jax.evaluation.report.clicks import Corrected
from usam_jax.evaluation.report.html import Section, write_report
from usam_jax.evaluation.report.plots import ReportSlice
from usam_jax.evaluation.report.words import describe_clicks
from usam_jax.evaluation.summary import mean
from usam_jax.utils.workdir import EvaluationFolder

MAX_CASES = 40  # cases with a plot of their own
LARGEST_ERROR = "largest error"
STRIP = 2  # number of worst, of median and of best cases

# From the row of a slice to the number of its case and the reason to show it.
Chosen = dict[int, tuple[int, str]]


def case_dice(result: CaseResult) -> float | None:
    """Mean Dice over the classes with a value, None if there is none."""
    return mean([score["Dice"] for score in result.scores])


def rank_cases(results: list[CaseResult]) -> list[int]:
    """Numbers of the cases from the worst to the best mean Dice.

    Cases without a Dice are left out, unless no case has one.
    """
    dice = {i: case_dice(x) for i, x in enumerate(results)}
    ranked = sorted((i for i, x in dice.items() if x is not None), key=lambda i: dice[i] or 0.0)
    return ranked or list(dice)


def spread_evenly(ranked: list[int], count: int) -> list[int]:
    """At most `count` evenly spaced entries, including the first and the last."""
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[round(i)] for i in places]


def pick_strip(ranked: list[int]) -> dict[int, str]:
    """The worst, median and best cases, each once, with the word that describes it."""
    middle = max(0, (len(ranked) - STRIP) // 2)
    groups = {
        "worst": ranked[:STRIP],
        "median": ranked[middle : middle + STRIP],
        "best": ranked[-STRIP:],
    }
    picked: dict[int, str] = {}
    for word, numbers in groups.items():
        for number in numbers:
            picked.setdefault(number, word)
    return picked


def choose_rows(
    results: list[CaseResult],
    cases: list[dict[str, Any]],
    counts: dict[int, np.ndarray],
    scoring: Scoring,
) -> Chosen:
    """Choose the slice with the largest error and that with the largest lesion of each case.

    `counts` are int[k 3] by row. Without a lesion class, the largest foreground area counts. At most
    `MAX_CASES` cases, evenly spaced from the worst to the best, plus those of `pick_strip`.
    """
    ranked = rank_cases(results)
    lesions = [i for i, name in enumerate(scoring.classes) if name in scoring.lesions]
    classes = lesions or list(range(1, len(scoring.classes)))
    what = "largest " + (scoring.lesions[0] if len(lesions) == 1 else "area")
    chosen: Chosen = {}
    for number in sorted({*spread_evenly(ranked, MAX_CASES), *pick_strip(ranked)}):
        case = cases[number]
        rows = range(case["row"], case["row"] + case["num_slices"])
        errors = {row: counts[row][1:, 1:].sum() for row in rows}
        areas = {row: counts[row][classes][:, [0, 2]].sum() for row in rows}
        chosen[max(errors, key=lambda row: errors[row])] = (number, LARGEST_ERROR)
        most = max(areas, key=lambda row: areas[row])
        if areas[most]:
            both = most in chosen
            chosen[most] = (number, f"{LARGEST_ERROR} and {what}" if both else what)
    return chosen


def make_report_slice(
    row: int,
    predicted: np.ndarray,
    chosen: Chosen,
    results: list[CaseResult],
    packed: Packed,
    split: str,
    mode: PromptMode,
) -> ReportSlice:
    number, why = chosen[row]
    truth = np.array(packed.labels(split)[row])
    return ReportSlice(
        case=results[number].name,
        name=packed.slices(split)[row]["name"],
        why=why,
        dice=case_dice(results[number]),
        image=np.array(packed.images(split)[row]),
        truth=truth,
        predicted=predicted,
        prompts=mode(truth, row, mode.num_points),
    )


def clicks_sections(
    files: EvaluationFolder,
    summary: dict[str, Any],
    corrected: list[Corrected],
    scoring: Scoring,
) -> list[Section]:
    """Draw the plots of the interactive evaluation, if there was one."""
    if not summary["clicks"]:
        return []
    clicks.save_curve(files.clicks, summary["clicks"])
    sections: list[Section] = [("Clicks", describe_clicks(summary["clicks"]), [files.clicks])]
    if corrected:
        clicks.save_corrections(files.corrections, corrected, scoring.classes)
        text = "The slices on which the automatic prediction is worst, one of each case."
        sections.append(("Automatic, then clicks", text, [files.corrections]))
    return sections


def draw_report(
    folder: pathlib.Path,
    summary: dict[str, Any],
    results: list[CaseResult],
    slices: list[ReportSlice],
    corrected: list[Corrected],
    scoring: Scoring,
) -> None:
    """Write `report.html` and its plots, those of clicks if there are any."""
    files = EvaluationFolder(folder)
    shutil.rmtree(files.cases, ignore_errors=True)  # of an earlier evaluation
    files.cases.mkdir(parents=True)
    by_case: dict[str, list[ReportSlice]] = {}
    for picture in slices:
        by_case.setdefault(picture.case, []).append(picture)
    strip = files.predictions
    picked = {results[i].name: word for i, word in pick_strip(rank_cases(results)).items()}
    worst = {
        name: next(x for x in by_case[name] if x.why.startswith(LARGEST_ERROR)) for name in picked
    }
    plots.save_slices(
        strip,
        [
            dataclasses.replace(worst[name], why=f"{word} case: {worst[name].why}")
            for name, word in picked.items()
        ],
        scoring.classes,
        "Worst, median and best cases",
    )
    paths = []
    for name, pictures in by_case.items():
        paths.append(files.case(name))
        plots.save_slices(paths[-1], pictures, scoring.classes)
    boxes, sizes, noise = files.boxes, files.sizes, files.noise
    plots.save_boxes(boxes, summary)
    sections = clicks_sections(files, summary, corrected, scoring)
    sections += [
        ("Worst, median and best cases", "Ranked by the mean Dice over the classes.", [strip]),
        ("All cases", "Dice, NSD and HD95 of each case, by class.", [boxes]),
    ]
    for name in scoring.lesions[:1]:
        plots.save_sizes(sizes, summary, name)
        text = f"Dice of each case against the volume of its {name}."
        sections.append((f"Size of the {name}", text, [sizes]))
    if len(summary["noise"]) > 1:
        automatic = summary["other_prompts"].get("none", {}).get("dice", {}).get("mean")
        plots.save_prompt_jitter(noise, summary["noise"], scoring.classes, automatic)
        text = (
            "The same prompts, displaced at random. They still reveal which slices have no "
            "foreground, and the model may rely on that alone."
        )
        sections.append(("Imprecise prompts", text, [noise]))
    text = "For each case the slice with the largest error and the slice with the largest lesion."
    if len(paths) < len(results):
        text += f" {len(paths)} of {len(results)} cases, evenly spaced from the worst to the best."
    sections.append(("Case by case", text, paths))
    write_report(files.report, summary, sections)
