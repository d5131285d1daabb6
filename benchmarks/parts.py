"""Time of each part of the full model, forward and in training."""

import csv
import itertools
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks.limits import PART_FLOP, product_limit, seconds
from benchmarks.results import Row
from configs import care
from usam_jax import models
from usam_jax.models import init_variables, make_model
from usam_jax.models.common.prompts import batch_prompts
from usam_jax.models.common.spec import split_params
from usam_jax.training.optimizer import make_optimizer, polynomial_decay
from usam_jax.utils import console
from usam_jax.utils.plotting import save_figure

BATCH = 4
ROUNDS = 9
KINDS = ("forward", "in training")
UPDATE = "optimiser's update"


def measure_parts() -> list[Row]:
    """Milliseconds per slice of each part alone, and its share of a large matrix product."""
    config = care.get_config()
    model = make_model(config.model)
    variables = init_variables(config.model, jax.random.key(0))
    size = config.model.image_size
    x = jax.random.normal(jax.random.key(1), (BATCH, size, size, 1))
    points = np.random.default_rng(0).uniform(0, size, (BATCH, 6, 2)).astype(np.float32)
    prompts = batch_prompts({"points_xy": points, "point_labels": np.ones((BATCH, 6), np.int32)})
    features = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, x[..., 0])
    f4 = jax.jit(lambda v, x: model.apply(v, x, method=lambda m, x: m.backbone(x, False)))
    parts: dict[str, tuple[str, Callable[..., Any], Any]] = {
        "convolutional encoder": ("backbone", lambda m, x, train: m.backbone(x, train), x),
        "image encoder": (
            "image_encoder",
            lambda m, x, _train: m.image_encoder(x),
            f4(variables, x)[-1],
        ),
        "mask decoder": ("mask_decoder", lambda m, x, train: m.decode(x, prompts, train), features),
    }
    limit, rows = product_limit(config.model.dtype), []
    runs = itertools.product(parts.items(), zip(KINDS, (make_forward, make_gradient), strict=True))
    with console.Progress("parts", len(parts) * len(KINDS), "parts") as bar:
        for (name, (part, method, given)), (kind, make) in runs:
            run = make(model, part, method, variables, given)
            jax.block_until_ready(run())
            work = BATCH * PART_FLOP[name] * (1 if kind == "forward" else 3)
            pairs = [(took := seconds(run), limit(took)) for _ in range(ROUNDS)]
            took = statistics.median(s for s, _ in pairs) / BATCH * 1e3
            share = statistics.median(work / s / most for s, most in pairs)
            rows += [
                (f"{name}, {kind}, batch {BATCH}", took, "ms a slice"),
                (f"{name}, {kind}, of a matrix product", share, ""),
            ]
            bar.advance()
    update = measure_update(config, variables["params"]) * 1e3
    return [*rows, (UPDATE, update, "ms a step")]


def make_forward(model: Any, _part: str, method: Any, variables: Any, x: Any) -> Callable[[], Any]:
    run = jax.jit(lambda v, x: model.apply(v, x, False, method=method))
    return lambda: run(variables, x)


def make_gradient(model: Any, part: str, method: Any, variables: Any, x: Any) -> Callable[[], Any]:
    """Gradients of a part's parameters and input for a random gradient of its output."""

    def forward(params: Any, x: Any) -> Any:
        given = {**variables, "params": {**variables["params"], part: params}}
        return model.apply(given, x, True, method=method, mutable=["batch_stats"])[0]

    shapes = jax.eval_shape(forward, variables["params"][part], x)
    above = jax.tree.map(lambda s: jax.random.normal(jax.random.key(2), s.shape, s.dtype), shapes)
    wanted = 0 if part == "backbone" else (0, 1)  # an image needs no gradient

    def backward(params: Any, x: Any, above: Any) -> Any:
        def total(params: Any, x: Any) -> Any:
            out = forward(params, x)
            return sum(
                (a * b).sum() for a, b in zip(*map(jax.tree.leaves, (out, above)), strict=True)
            )

        return jax.grad(total, wanted)(params, x)

    run = jax.jit(backward)
    return lambda: run(variables["params"][part], x, above)


def measure_update(config: Any, params: Any) -> float:
    """Seconds of one update of all parameters.

    The median of several.
    """
    spec = models.get(config.model.name)
    params = split_params(params, spec)[0]
    tx = make_optimizer(config.optimizer, polynomial_decay(100), spec)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(update, donate_argnums=(0, 1))
    grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    params, state = run(jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params), grads)

    def once() -> Any:
        nonlocal params, state
        params, state = run(params, state, grads)
        return params

    return statistics.median(seconds(once) for _ in range(ROUNDS))


def draw_parts(path: pathlib.Path, results: pathlib.Path, device: str) -> None:
    """Draw the parts at the first and the last commit measured on a device, as bars."""
    with results.open(newline="") as file:
        rows = [x for x in csv.DictReader(file) if x["device"] == device]
    names = [f"{part}, {kind}, batch {BATCH}" for part in PART_FLOP for kind in KINDS]
    names.append(UPDATE)
    found: dict[str, dict[str, float]] = {}  # commit -> part -> ms
    for row in rows:
        if row["what"] in names:
            found.setdefault(row["commit"], {})[row["what"]] = float(row["value"])
    whole = [x for x in found if len(found[x]) == len(names)]
    commits = whole[:1] + whole[1:][-1:]
    plot = Figure(figsize=(8, 3.6), layout="constrained")
    axes = plot.subplots()
    height = 0.8 / len(commits)
    for number, commit in enumerate(commits):
        places = np.arange(len(names)) + number * height
        bars = axes.barh(places, [found[commit][x] for x in names], height, label=commit)
        axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    axes.invert_yaxis()
    axes.set_xlabel("ms per slice; of the update, ms per step")
    axes.set_title(device, fontsize=10)
    axes.legend(title="commit")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(plot, path)
