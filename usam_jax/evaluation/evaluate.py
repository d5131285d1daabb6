"""Evaluation of a run: best checkpoint -> predictions -> case scores -> tables, plots."""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax.data import splits
from usam_jax.data.class_names import MEAN
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
from usam_jax.evaluation import checks, interactive, pixel_counts, published_results
from usam_jax.evaluation.case_metrics import Scoring
from usam_jax.evaluation.case_scorer import CaseResult, CaseScorer
from usam_jax.evaluation.inference import Forward, count_subset, make_forward, stream
from usam_jax.evaluation.report import clicks
from usam_jax.evaluation.report.plots import ReportSlice
from usam_jax.evaluation.report.slices import choose_rows, draw_report, make_report_slice
from usam_jax.evaluation.report.tables import print_results
from usam_jax.evaluation.sensitivity import count_changes, prompt_sensitivity
from usam_jax.evaluation.summary import summarise, write_results
from usam_jax.models import make_model
from usam_jax.training.loop import Evaluated, EvaluateFn
from usam_jax.utils import runtime
from usam_jax.utils.errors import WeightsError
from usam_jax.utils.files import require_folder
from usam_jax.utils.mesh import make_mesh, replicated
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import run_checkpoint, run_config


class Model(NamedTuple):
    """A compiled model, its variables, and the mesh on which they are replicated."""

    forward: Forward
    variables: Any
    mesh: Mesh


class Predicted(NamedTuple):
    """Results by prompt mode: pixel counts int32[n k 3] of n slices, and scores of the cases.

    `changed` counts, by scored mode, the pixels whose class differs from that without prompts, and
    those that are foreground in either of the two; it is empty if "none" is not scored. `on_source`
    is True if cases were scored on the voxels of their label volumes.
    """

    counts: dict[str, np.ndarray]
    results: dict[str, list[CaseResult]]
    changed: dict[str, np.ndarray]
    on_source: bool


def make_scoring(config: ConfigDict) -> Scoring:
    """Return the case scoring of `config.eval`: one NSD tolerance per foreground class."""
    count = len(config.data.classes) - 1
    tolerances = tuple(float(x) for x in config.eval.nsd_tolerance_mm)
    tolerances = tolerances * count if len(tolerances) == 1 else tolerances
    return Scoring(tuple(config.data.classes), tolerances, config.eval.empty_policy)


def predict_subset(
    model: Model, packed: Packed, subset: Subset, config: ConfigDict, scored: list[PromptMode]
) -> Predicted:
    """Predict a subset of whole cases once, for the `scored` modes and the jittered ones.

    Pixel counts cover all modes, case scores the `scored` modes alone.
    """
    modes = scored + jittered_modes(config)
    counts: dict[str, list[np.ndarray]] = {mode.name: [] for mode in modes}
    compared = [mode.name for mode in scored] if "none" in counts else []
    changed = {name: np.zeros(2, np.int64) for name in compared}
    batches = stream(
        *model[:2], packed, subset, modes, config, model.mesh, f"evaluating {config.eval.split}"
    )
    with CaseScorer(packed, subset.split, make_scoring(config)) as scorer:
        for rows, by_mode in batches:
            for name, of_mode in counts.items():
                of_mode.append(by_mode[name].counts)
            predicted = {mode.name: by_mode[mode.name].predicted for mode in scored}
            for name, sums in changed.items():
                sums += count_changes(predicted[name], predicted["none"])
            for i, row in enumerate(rows):
                scorer.add(int(row), {name: x[i] for name, x in predicted.items()})
        results = scorer.finish()
    joined = {name: np.concatenate(x) for name, x in counts.items()}
    return Predicted(joined, results, changed, scorer.on_source)


def pooled_metrics(counts: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return Dice and IoU per class, their means, and pixels, from sums over all slices.

    This is the published code's metric. `counts` is int32[n k 3].
    """
    scores = pixel_counts.pooled_scores(counts, classes)
    return {
        "dice": {**scores.dice, MEAN: scores.mean_dice},
        "iou": {**scores.iou, MEAN: scores.mean_iou},
        "pixels": scores.pixels,
    }


def make_evaluate_fn(
    model: nn.Module, packed: Packed, subset: Subset, config: ConfigDict, mesh: Mesh
) -> EvaluateFn:
    """Return the evaluation during training: pooled Dice and IoU of `subset`."""
    forward, mode, name = make_forward(model, mesh), main_mode(config), config.eval.select_on

    def evaluate_fn(variables: dict[str, Any]) -> Evaluated:
        counts = count_subset(forward, variables, packed, subset, mode, config, mesh, name)
        scores = pixel_counts.pooled_scores(counts, config.data.classes)
        return Evaluated(scores.named(name), scores.mean_dice)

    return evaluate_fn


def check_classes(workdir: pathlib.Path, saved: dict[str, Any], config: ConfigDict) -> None:
    """Raise WeightsError if the class names of a run, or their order, are not those of `config`."""
    trained = tuple(saved["data"]["classes"])
    if trained != tuple(config.data.classes):
        raise WeightsError(
            f"{workdir} was trained with the classes {trained}, but config.data.classes is "
            f"{tuple(config.data.classes)}. Evaluate the run on data with its own classes."
        )


def evaluate_workdir(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluate the best checkpoint of a run on `config.eval.split`, and return the summary.

    Writes `eval/SPLIT_PROMPTS/` in `workdir`: `summary.json`, `per_case.csv`, `report.html` and its
    plots for `config.prompts`, and the first two for each of `config.eval.prompts`.

    Raises UsageError if the config is invalid, WeightsError if there is no checkpoint or it is one
    of another model, and DataError if the run was trained on slices of a split other than `train`.
    """
    mesh = make_mesh()
    checks.check_all(config, mesh)
    step = run_checkpoint.best_step(workdir, config.model)
    saved = run_config.read_config(workdir)
    check_classes(workdir, saved, config)
    if runtime.is_main_process():
        require_folder(Workdir(workdir).evaluations)
    packed = prepare(config.data)
    subset = splits.choose(splits.split_subsets(packed, config.data, config.eval.select_on), config)
    splits.check_unseen(workdir, packed, subset, config.eval.split)
    subset = splits.whole_cases(packed, subset)
    network = make_model(config.model)
    variables = run_checkpoint.load_variables(workdir, config.model, step, replicated(mesh))
    model = Model(make_forward(network, mesh), variables, mesh)
    main, others = main_mode(config), other_modes(config)
    done = predict_subset(model, packed, subset, config, [main, *others])
    common = {
        "workdir": str(workdir),
        "checkpoint_step": step,
        "checkpoint_chosen_on": saved["eval"]["select_on"],
        "trained_with": trained_with(saved),
        "data": str(packed.folder),
        "data_fingerprint": packed.manifest["fingerprint"],
        "split": config.eval.split,
        "num_slices": len(subset),
        "resolution": "source" if done.on_source else "packed",
    }
    classes = tuple(config.data.classes)
    pooled = {name: pooled_metrics(counts, classes) for name, counts in done.counts.items()}
    jittered = [main, *jittered_modes(config)] if main.name != "none" else []
    summary = {
        "prompts": main.describe(),
        "automatic": main.name == "none",
        "pooled": pooled[main.name],
        "other_prompts": {
            x.name: {"prompts": x.describe(), **without_pixels(pooled[x.name])} for x in others
        },
        "sensitivity": prompt_sensitivity(
            [main, *others], pooled, done.changed, saved["prompts"]["kind"]
        ),
        "clicks": None,
        "noise": [{"pixels": x.jitter_px, **without_pixels(pooled[x.name])} for x in jittered],
        "paper": published_results.rows_for(
            packed.manifest["settings"]["kind"], classes, config.eval.split
        ),
    }
    shown = predict_shown(model, packed, subset, config, main, done)
    corrected: list[clicks.Corrected] = []
    if config.model.get("interactive", False) and config.eval.max_clicks:
        summary["clicks"], corrected = click_through(network, model, packed, subset, config)
    if runtime.is_main_process():
        scoring = make_scoring(config)
        in_mm = all(x["geometry"] for x in packed.cases(subset.split))
        statistics = {
            name: summarise(results, scoring, in_mm) for name, results in done.results.items()
        }
        slices = packed.slices(subset.split)
        cases = [slices[row]["case"] for row in subset.rows]
        for name, found in statistics.items():
            pixels = pixel_counts.sum_by_case(done.counts[name], cases)
            for case in found["metric_per_case"]:
                case["pixels"] = pixels[case["case"]]
        for other in others:
            metrics = {
                "prompts": other.describe(),
                "automatic": other.name == "none",
                "pooled": pooled[other.name],
            }
            write_results(
                Workdir(workdir).evaluation(config.eval.split, other.name).path,
                common | metrics | statistics[other.name],
            )
        summary = common | summary | statistics[main.name]
        folder = Workdir(workdir).evaluation(config.eval.split, main.name).path
        write_results(folder, summary)
        draw_report(folder, summary, done.results[main.name], shown, corrected, scoring)
        print_results(summary, folder)
    return common | summary


def click_through(
    network: nn.Module, model: Model, packed: Packed, subset: Subset, config: ConfigDict
) -> tuple[dict[str, Any] | None, list[clicks.Corrected]]:
    """Return the robot user's metrics on the slices with foreground, and the worst of them.

    None and no slices if there is no foreground.
    """
    clicked = interactive.with_foreground(packed, subset)
    if not len(clicked):
        return None, []
    decode = interactive.make_click_decoder(network, model.mesh)
    click = functools.partial(
        interactive.click_through,
        decode,
        model.forward,
        model.variables,
        packed,
        config=config,
        mesh=model.mesh,
    )
    record = click(clicked)
    worst = Subset(subset.split, clicks.choose_slices(record, packed, subset.split))
    return (
        interactive.summarise_clicks(record, tuple(config.data.classes)),
        clicks.make_corrected(click(worst, keep=True), packed, subset.split),
    )


def without_pixels(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return pooled metrics without the numbers of pixels."""
    return {name: metrics[name] for name in ("dice", "iou")}


def predict_shown(
    model: Model,
    packed: Packed,
    subset: Subset,
    config: ConfigDict,
    mode: PromptMode,
    done: Predicted,
) -> list[ReportSlice]:
    """Predict the report's slices again, since the first pass keeps no predictions."""
    counts = dict(zip(subset.rows.tolist(), done.counts[mode.name], strict=True))
    results = done.results[mode.name]
    case_of = {x["name"]: x for x in packed.cases(subset.split)}
    cases = [case_of[x.name] for x in results]
    chosen = choose_rows(results, cases, counts, make_scoring(config))
    shown = Subset(subset.split, np.array(sorted(chosen)))
    batches = stream(*model[:2], packed, shown, [mode], config, model.mesh, "report slices")
    return [
        make_report_slice(row, predicted, chosen, results, packed, subset.split, mode)
        for rows, by_mode in batches
        for row, predicted in zip(rows.tolist(), by_mode[mode.name].predicted, strict=True)
    ]
