"""Evaluation: padded batches of one shape, pixel counts on the device, figures on the host."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import checkpoint, checks, logs, metrics, report
from usam_jax.data import pipeline, splits
from usam_jax.data.packed import Packed
from usam_jax.data.prepare import prepare
from usam_jax.data.prompts import eval_kind
from usam_jax.data.splits import Part
from usam_jax.files import write_json
from usam_jax.models import Prompts, USam, make_model
from usam_jax.sharding import make_mesh, over_batch, put_batch, replicated

NUM_PICTURES = 6

EvalStep = Callable[[Any, dict[str, Any]], tuple[Any, Any]]


def batch_images(batch: dict[str, Any]) -> jax.Array:
    """uint8 slices to the model's grey values in [0, 1]."""
    return batch["image"].astype(jnp.float32) / 255


def batch_prompts(batch: dict[str, Any]) -> Prompts | None:
    """The prompts of a batch; None where it has none."""
    fields = ("points_xy", "point_labels", "boxes_xyxy", "prompts_given")
    found = {name.removeprefix("prompts_"): batch[name] for name in fields if name in batch}
    return Prompts(**found) if found else None


def make_eval_step(model: USam, mesh: Mesh) -> EvalStep:
    """Jitted (variables, batch) -> pixel counts int32[b k 3], predicted classes uint8[b h w]."""

    def eval_step(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        logits: Any = model.apply(variables, batch_images(batch), batch_prompts(batch))
        predicted = logits.argmax(-1).astype(jnp.int32)
        labels = batch["label"].astype(jnp.int32)
        counts = metrics.count_pixels(predicted, labels, batch["valid"], logits.shape[-1])
        return counts, predicted.astype(jnp.uint8)

    everywhere = replicated(mesh)
    shardings = (None, over_batch(mesh))  # the variables as they lie
    return jax.jit(eval_step, in_shardings=shardings, out_shardings=(everywhere, everywhere))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Counts int32[n k 3] of the n slices in order, and the predictions that pictures show."""

    counts: np.ndarray
    predictions: dict[int, np.ndarray]


def run_evaluation(
    eval_step: EvalStep,
    variables: Any,
    packed: Packed,
    part: Part,
    config: ConfigDict,
    mesh: Mesh,
    keep: frozenset[int] = frozenset(),
) -> Evaluation:
    """Evaluates a part of the data; `keep` are the rows whose prediction is kept."""
    split, rows = part.split, part.rows
    process, processes = jax.process_index(), jax.process_count()
    batches, num_batches = pipeline.eval_batches(packed, split, rows, config, process, processes)
    size = config.eval.batch_size
    counts: list[Any] = []
    predictions: dict[int, np.ndarray] = {}
    with logs.Progress(f"evaluating {split}", num_batches, "batches") as bar:
        for number, batch in enumerate(batches):
            batch_counts, predicted = eval_step(variables, put_batch(batch, mesh))
            counts.append(batch_counts)
            shown = {
                int(row): i for i, row in enumerate(rows[number * size :][:size]) if row in keep
            }
            if shown:
                on_host = np.asarray(predicted)
                predictions |= {row: on_host[i] for row, i in shown.items()}
            if number:  # waiting for the batch before keeps the device busy and the bar honest
                jax.block_until_ready(counts[number - 1])
            bar.advance(per_step=size)
    return Evaluation(np.concatenate(counts)[: len(rows)], predictions)


def choose_pictures(packed: Packed, part: Part) -> frozenset[int]:
    """Rows for the pictures: spread evenly over the slices with the most classes in them."""
    labels, step = packed.labels(part.split), max(1, len(part) // 200)
    classes = {int(row): np.unique(labels[row]).size for row in part.rows[::step]}
    ranked = sorted(classes, key=lambda row: -classes[row])
    fullest = [row for row in ranked if classes[row] == classes[ranked[0]]]
    pool = fullest if len(fullest) >= NUM_PICTURES else ranked[:NUM_PICTURES]
    picked = np.linspace(0, len(pool) - 1, min(NUM_PICTURES, len(pool))).astype(int)
    return frozenset(pool[i] for i in picked)


def describe_prompts(prompts: ConfigDict) -> str:
    """Where the prompts came from, in words, for every result."""
    points = f"{prompts.points_per_class} points per class"
    if prompts.order == "rowcol":
        points += " as (row, column)"
    if prompts.negative_points:
        points += f" and {prompts.negative_points} of the background"
    words = {
        "none": "none (automatic)",
        "points": f"{points} from the ground truth",
        "box": "box from the ground truth",
        "points_box": f"{points} and box from the ground truth",
    }
    return words[eval_kind(prompts.kind)]


def name_prompts(prompts: ConfigDict) -> str:
    """The prompts as a folder's name: `points3`, `points3_rowcol`, `points3_box`, `box`, `none`."""
    name = eval_kind(prompts.kind)
    if "points" in name:
        negative = f"_negative{prompts.negative_points}" if prompts.negative_points else ""
        name = name.replace("points", f"points{prompts.points_per_class}{negative}")
        name += "_rowcol" if prompts.order == "rowcol" else ""
    return name


def evaluate_workdir(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on `config.eval.split`; returns the summary.

    Writes `eval/SPLIT_PROMPTS/summary.json` and `predictions.png` in `workdir`.
    Raises UsageError for a wrong config, WeightsError where there is no checkpoint or one of
    another model, and DataError where the run was trained on slices of a part that is not `train`.
    """
    mesh = make_mesh()
    checks.check_config(config, mesh)
    step = checkpoint.check_run(workdir, config.model)
    model = make_model(config.model)
    packed = prepare(config.data)
    part = splits.choose(splits.split_parts(packed, config.data, config.eval.select_on), config)
    splits.check_unseen(workdir, packed, part, config.eval.split)
    variables = checkpoint.load_variables(workdir, model, step, replicated(mesh))
    keep = choose_pictures(packed, part)
    done = run_evaluation(make_eval_step(model, mesh), variables, packed, part, config, mesh, keep)
    scores = metrics.pooled_scores(done.counts, config.data.classes)
    folder = workdir / "eval" / f"{config.eval.split}_{name_prompts(config.prompts)}"
    chosen_on = checkpoint.read_config(workdir)["eval"]["select_on"]
    summary = {
        "schema_version": 1,
        "workdir": str(workdir),
        "checkpoint_step": step,
        "checkpoint_chosen_on": chosen_on,
        "data": str(packed.folder),
        "data_fingerprint": packed.manifest["fingerprint"],
        "split": config.eval.split,
        "num_slices": len(part),
        "prompts": describe_prompts(config.prompts),
        "dice": {**scores.dice, "mean": scores.mean_dice},
        "iou": {**scores.iou, "mean": scores.mean_iou},
        "pixels": scores.pixels,
    }
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "summary.json", summary)
        report.save_pictures(
            folder / "predictions.png", packed, part.split, done.predictions, config
        )
        report.print_table(summary, folder)
    return summary
