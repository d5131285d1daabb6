"""Evaluation of a run: its best checkpoint -> predictions -> scores of cases -> tables and pictures."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax.data import splits
from usam_jax.data.packed.format import Packed
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.prompt_modes import (
    PromptMode,
    jittered_modes,
    main_mode,
    other_modes,
    trained_with,
)
from usam_jax.data.splits import Subset
from usam_jax.evaluation import checks, pixel_counts, published_results
from usam_jax.evaluation.case_metrics import Scoring
from usam_jax.evaluation.case_scorer import CaseResult, CaseScorer
from usam_jax.evaluation.inference import Forward, count_subset, make_forward, stream
from usam_jax.evaluation.report.plots import ReportSlice
from usam_jax.evaluation.report.slices import choose_rows, draw_report, make_report_slice
from usam_jax.evaluation.report.tables import print_results
from usam_jax.evaluation.summary import summarise, write_results
from usam_jax.models import make_model
from usam_jax.training.loop import Evaluated, EvaluateFn
from usam_jax.utils import runtime
from usam_jax.utils.errors import WeightsError
from usam_jax.utils.files import require_folder
from usam_jax.utils.mesh import make_mesh, replicated
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import run_checkpoint


class Model(NamedTuple):
    """What predicts: the model's halves, its variables, and the devices they lie on."""

    forward: Forward
    variables: Any
    mesh: Mesh


class Predicted(NamedTuple):
    """By mode the pixel counts int32[n k 3] of the n slices, and the scores of the cases.

    `on_source` says if cases were scored on the voxels of their label volumes.
    """

    counts: dict[str, np.ndarray]
    results: dict[str, list[CaseResult]]
    on_source: bool


def make_scoring(config: ConfigDict) -> Scoring:
    """How `config.eval` has cases scored."""
    count = len(config.data.classes) - 1
    tolerances = tuple(float(x) for x in config.eval.nsd_tolerance_mm)
    tolerances = tolerances * count if len(tolerances) == 1 else tolerances
    return Scoring(tuple(config.data.classes), tolerances, config.eval.empty_policy)


def predict_subset(
    model: Model, packed: Packed, part: Subset, config: ConfigDict, scored: list[PromptMode]
) -> Predicted:
    """Runs a part of whole cases through the model once, for the modes to score and noisy ones."""
    modes = scored + jittered_modes(config)
    counts: dict[str, list[np.ndarray]] = {mode.name: [] for mode in modes}
    outcomes = stream(
        *model[:2], packed, part, modes, config, model.mesh, f"evaluating {config.eval.split}"
    )
    with CaseScorer(packed, part.split, make_scoring(config)) as scorer:
        for rows, found in outcomes:
            for name, of_mode in counts.items():
                of_mode.append(np.asarray(found[name].counts)[: len(rows)])
            predicted = {mode.name: np.asarray(found[mode.name].predicted) for mode in scored}
            for i, row in enumerate(rows):
                scorer.add(int(row), {name: x[i] for name, x in predicted.items()})
        results = scorer.finish()
    return Predicted(
        {name: np.concatenate(x) for name, x in counts.items()}, results, scorer.on_source
    )


def pooled_metrics(counts: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Dice and IoU of each class and their mean, from sums over all slices, as published."""
    scores = pixel_counts.pooled_scores(counts, classes)
    return {
        "dice": {**scores.dice, "mean": scores.mean_dice},
        "iou": {**scores.iou, "mean": scores.mean_iou},
        "pixels": scores.pixels,
    }


def make_evaluate_fn(
    model: nn.Module, packed: Packed, subset: Subset, config: ConfigDict, mesh: Mesh
) -> EvaluateFn:
    """How training evaluates: pooled Dice and IoU on the subset that chooses the best epoch."""
    forward, mode, name = make_forward(model, mesh), main_mode(config), config.eval.select_on

    def evaluate_fn(variables: dict[str, Any]) -> Evaluated:
        counts = count_subset(forward, variables, packed, subset, mode, config, mesh, name)
        scores = pixel_counts.pooled_scores(counts, config.data.classes)
        return Evaluated(scores.named(name), scores.mean_dice)

    return evaluate_fn


def check_classes(workdir: pathlib.Path, saved: dict[str, Any], config: ConfigDict) -> None:
    """Raises WeightsError where a run was trained with classes of other names or in other order."""
    trained = tuple(saved["data"]["classes"])
    if trained != tuple(config.data.classes):
        raise WeightsError(
            f"{workdir} was trained with the classes {trained}, the data have "
            f"{tuple(config.data.classes)}; evaluate it on data with its own classes"
        )


def evaluate_workdir(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on `config.eval.split`; returns the summary.

    Writes `eval/SPLIT_PROMPTS/` in `workdir`: `summary.json`, `per_case.csv`, `report.html` and its
    pictures for `config.prompts`, the first two for each of `config.eval.prompts`.
    Raises UsageError for a wrong config, WeightsError where there is no checkpoint or one of
    another model, and DataError where the run was trained on slices of a part that is not `train`.
    """
    mesh = make_mesh()
    checks.check_all(config, mesh)
    step = run_checkpoint.best_step(workdir, config.model)
    saved = run_checkpoint.read_config(workdir)
    check_classes(workdir, saved, config)
    if runtime.is_main_process():
        require_folder(Workdir(workdir).evaluations)
    packed = prepare(config.data)
    part = splits.choose(splits.split_subsets(packed, config.data, config.eval.select_on), config)
    splits.check_unseen(workdir, packed, part, config.eval.split)
    part = splits.whole_cases(packed, part)
    network = make_model(config.model)
    variables = run_checkpoint.load_variables(workdir, config.model, step, replicated(mesh))
    model = Model(make_forward(network, mesh), variables, mesh)
    main, others = main_mode(config), other_modes(config)
    done = predict_subset(model, packed, part, config, [main, *others])
    common = {
        "workdir": str(workdir),
        "checkpoint_step": step,
        "checkpoint_chosen_on": saved["eval"]["select_on"],
        "trained_with": trained_with(saved),
        "data": str(packed.folder),
        "data_fingerprint": packed.manifest["fingerprint"],
        "split": config.eval.split,
        "num_slices": len(part),
        "resolution": "source" if done.on_source else "packed",
    }
    classes = tuple(config.data.classes)
    pooled = {name: pooled_metrics(counts, classes) for name, counts in done.counts.items()}
    moved = [main, *jittered_modes(config)] if main.name != "none" else []
    summary = {
        "prompts": main.describe(),
        "automatic": main.name == "none",
        "pooled": pooled[main.name],
        "other_prompts": {
            x.name: {"prompts": x.describe(), **without_pixels(pooled[x.name])} for x in others
        },
        "noise": [{"pixels": x.jitter_px, **without_pixels(pooled[x.name])} for x in moved],
        "paper": published_results.rows_for(
            packed.manifest["settings"]["kind"], classes, config.eval.split
        ),
    }
    shown = predict_shown(model, packed, part, config, main, done)
    if runtime.is_main_process():
        scoring = make_scoring(config)
        in_mm = all(x["geometry"] for x in packed.cases(part.split))
        statistics = {
            name: summarise(results, scoring, in_mm) for name, results in done.results.items()
        }
        for other in others:
            figures = {
                "prompts": other.describe(),
                "automatic": other.name == "none",
                "pooled": pooled[other.name],
            }
            write_results(
                Workdir(workdir).evaluation(config.eval.split, other.name).path,
                common | figures | statistics[other.name],
            )
        summary = common | summary | statistics[main.name]
        folder = Workdir(workdir).evaluation(config.eval.split, main.name).path
        write_results(folder, summary)
        draw_report(folder, summary, done.results[main.name], shown, scoring)
        print_results(summary, folder)
    return common | summary


def without_pixels(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("dice", "iou")}


def predict_shown(
    model: Model,
    packed: Packed,
    part: Subset,
    config: ConfigDict,
    mode: PromptMode,
    done: Predicted,
) -> list[ReportSlice]:
    """The slices that the pictures show, predicted once more rather than all kept."""
    counts = dict(zip(part.rows.tolist(), done.counts[mode.name], strict=True))
    results = done.results[mode.name]
    known = {x["name"]: x for x in packed.cases(part.split)}
    cases = [known[x.name] for x in results]
    chosen = choose_rows(results, cases, counts, make_scoring(config))
    few = Subset(part.split, np.array(sorted(chosen)))
    outcomes = stream(*model[:2], packed, few, [mode], config, model.mesh, "pictures")
    return [
        make_report_slice(row, predicted, chosen, results, packed, part.split, mode)
        for rows, found in outcomes
        for row, predicted in zip(
            rows.tolist(), np.asarray(found[mode.name].predicted)[: len(rows)], strict=True
        )
    ]
