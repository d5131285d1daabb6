"""One run of a comparison of networks: training, evaluation, cost, and shown slices."""

import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data import loader, splits
from usam_jax.data.packed.format import Packed
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.prompt_modes import main_mode
from usam_jax.data.splits import Subset
from usam_jax.evaluation.evaluate import Model
from usam_jax.evaluation.inference import make_forward, stream
from usam_jax.evaluation.sweep import train_and_evaluate
from usam_jax.models import make_model, variable_shapes
from usam_jax.models.common.flop import forward_flop
from usam_jax.training.metric_writer import read_rows
from usam_jax.utils import runtime
from usam_jax.utils.files import atomic_write, read_json
from usam_jax.utils.mesh import make_mesh, replicated, shard_batch
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import run_checkpoint

NUM_SHOWN = 4  # slices of the qualitative figure
MIN_ROUNDS, MIN_SECONDS = 3, 1.0  # of the measurement of speed


def shown_path(folder: pathlib.Path) -> pathlib.Path:
    """Return the file of the slices that a run shows, next to its folder."""
    return folder.with_name(f"{folder.name}.npz")


def run_network(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Train and evaluate a network, measure its cost, and return a result ready for JSON.

    Writes the predictions of the slices of `choose_shown` to `shown_path`.
    """
    summary = train_and_evaluate(config, folder)
    packed, mesh = prepare(config.data), make_mesh()
    variables = run_checkpoint.load_variables(
        folder, config.model, summary["checkpoint_step"], replicated(mesh)
    )
    model = Model(make_forward(make_model(config.model), mesh), variables, mesh)
    subset = splits.choose(splits.split_subsets(packed, config.data, config.eval.select_on), config)
    subset = splits.whole_cases(packed, subset)
    write_shown(shown_path(folder), model, packed, subset, config)
    steps = read_json(Workdir(folder).run)["starts"][-1]["last_step"]
    return {
        "mode": main_mode(config).name,
        "split": config.eval.split,
        "kind": packed.manifest["settings"]["kind"],
        "pooled": {kind: summary["pooled"][kind] for kind in ("dice", "iou")},
        "parameters": count_parameters(config.model),
        "flop": forward_flop(config.model),
        "predicted_per_second": measure_speed(model, packed, subset, config),
        "trained_per_second": training_speed(Workdir(folder).metrics),
        "epochs": config.train.num_epochs,
        "steps": steps,
        "batch_size": config.train.batch_size,
        "image_size": config.model.image_size,
        "devices": runtime.describe_devices(),
    }


def count_parameters(model: ConfigDict) -> int:
    """Return the number of parameters of `config.model`, frozen ones included."""
    return sum(x.size for x in jax.tree.leaves(variable_shapes(model)["params"]))


def training_speed(metrics: pathlib.Path) -> float:
    """Return the median of the slices per second in `metrics.jsonl`, evaluations left out."""
    rows = read_rows(metrics)
    return statistics.median(x["speed/slices_per_second"] for x in rows if "train/loss" in x)


def measure_speed(model: Model, packed: Packed, subset: Subset, config: ConfigDict) -> float:
    """Return slices per second of the compiled network on full batches, without reading data."""
    mode = main_mode(config)
    dims = models.get(config.model.name).dims
    batches, _ = loader.eval_batches(packed, subset.split, subset.rows, config, [mode], dims=dims)
    batch = shard_batch(next(batches), model.mesh)

    def predict() -> None:
        features = model.forward.encode(model.variables, batch["image"])
        labels = batch["label"].astype(np.int32)
        prompts, valid = batch["prompts"][mode.name], batch["valid"]
        jax.block_until_ready(
            model.forward.decode(model.variables, features, prompts, labels, valid)
        )

    predict()  # compiles
    seconds: list[float] = []
    while len(seconds) < MIN_ROUNDS or sum(seconds) < MIN_SECONDS:
        start = time.perf_counter()
        predict()
        seconds.append(time.perf_counter() - start)
    slices = config.eval.batch_size * models.predicted_slices(config.model)
    return slices / statistics.median(seconds)


def choose_shown(packed: Packed, subset: Subset) -> np.ndarray:
    """Return the rows of up to NUM_SHOWN slices of evenly spaced cases, without any prediction.

    Of each case it is the slice with the most classes and, of those, with the largest foreground.
    Cases without foreground are left out, so that all networks show the same slices.
    """
    labels, slices = packed.labels(subset.split), packed.slices(subset.split)
    rows_of: dict[str, list[int]] = {}
    for row in subset.rows.tolist():
        if slices[row]["foreground"]:
            rows_of.setdefault(slices[row]["case"], []).append(row)
    cases = list(rows_of.values())
    places = np.linspace(0, len(cases) - 1, min(NUM_SHOWN, len(cases))).round().astype(int)

    def rank(row: int) -> tuple[int, int]:
        return len(np.unique(labels[row])), int((labels[row] > 0).sum())

    return np.array(sorted(max(cases[i], key=rank) for i in places), int)


def write_shown(
    path: pathlib.Path, model: Model, packed: Packed, subset: Subset, config: ConfigDict
) -> None:
    """Write the `names` of the shown slices, and their images, truths and predictions.

    `image`, `truth` and `predicted` are uint8[n s s]. Writes nothing if no case has foreground.
    """
    rows, mode = choose_shown(packed, subset), main_mode(config)
    if not rows.size:
        return
    shown = Subset(subset.split, rows)
    batches = stream(*model[:2], packed, shown, [mode], config, model.mesh, "shown slices")
    predicted = [x[mode.name].predicted for _, x in batches]
    slices = packed.slices(subset.split)
    images, labels = packed.images(subset.split), packed.labels(subset.split)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array([slices[row]["name"] for row in rows]),
            image=np.array(images[rows]),
            truth=np.array(labels[rows]),
            predicted=np.concatenate(predicted),
        )
