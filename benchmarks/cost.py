"""How time and memory of the forward pass grow with image size, classes and points.

Measured with ViT-B in float32 on one slice.
"""

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.limits import cpu_seconds
from benchmarks.results import Row
from configs import care
from usam_jax.models import Prompts, make_model, variable_shapes
from usam_jax.utils import console
from usam_jax.utils.plotting import TWO_SERIES, save_figure

IMAGE_SIZE, CLASSES, POINTS = 224, 3, 0  # if another number is varied
IMAGE_SIZES = (224, 384, 512, 768, 1024)
CLASS_COUNTS = (3, 17, 50, 117)
POINT_COUNTS = (0, 1, 4, 16, 64)
MIN_ROUNDS = 3
MIN_SECONDS = 2.0  # of CPU; short runs are repeated, since other processes disturb them more

SECONDS, MEMORY, OPERATIONS = "s of CPU", "GB of temporary memory", "GFLOP"  # units
SWEEPS = {  # the label of the axis and what is not varied
    "image size": ("image size (pixels per side)", f"{CLASSES} classes, no prompts"),
    "classes": ("number of classes", f"image size {IMAGE_SIZE}, no prompts"),
    "points": ("number of points", f"image size {IMAGE_SIZE}, {CLASSES} classes"),
}
FORWARD, DECODE = "forward of ViT-B", "decode of ViT-B"
COLOURS = {FORWARD: TWO_SERIES[0], DECODE: TWO_SERIES[1]}


def measure_cost() -> list[Row]:
    """CPU seconds (the minimum of several runs), XLA's temporary memory, and operations."""
    runs: list[tuple[str, str, dict[str, int]]] = [
        *((FORWARD, f"image size {x}", {"image_size": x}) for x in IMAGE_SIZES),
        *((FORWARD, f"classes {x}", {"num_classes": x}) for x in CLASS_COUNTS),
        *((y, f"points {x}", {"num_points": x}) for x in POINT_COUNTS for y in (FORWARD, DECODE)),
    ]
    rows = []
    with console.Progress("cost", len(runs), "programs") as bar:
        for part, where, numbers in runs:
            rows += measure_part(part, where, **numbers)
            bar.advance()
    return rows


def measure_part(part: str, where: str, num_points: int = POINTS, **changes: int) -> list[Row]:
    """Cost of the whole forward pass or of the decoder.

    `changes` are fields of config.model.
    """
    config = care.get_config().model
    config.update({"image_size": IMAGE_SIZE, "num_classes": CLASSES} | changes)
    model = make_model(config)
    # Time does not depend on the values, and zeros need no initialisation.
    variables = zeros_like(variable_shapes(config))
    images = jnp.zeros((1, config.image_size, config.image_size), jnp.float32)
    points = jnp.zeros((1, num_points, 2), jnp.float32)
    labels = jnp.ones((1, num_points), jnp.int32)
    prompts = Prompts(points, labels) if num_points else None
    if part == FORWARD:
        found = measure_function(model.apply, variables, images, prompts)
    else:
        encode, decode = (functools.partial(model.apply, method=x) for x in ("encode", "decode"))
        features = zeros_like(jax.eval_shape(encode, variables, images))
        found = measure_function(decode, variables, features, prompts)
    return [(f"{part}, {where}", value, unit) for unit, value in found.items()]


def zeros_like(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def measure_function(function: Any, *arguments: Any) -> dict[str, float]:
    """What one call of the compiled function costs, by unit."""
    lowered = jax.jit(function).lower(*arguments)
    # Counted before XLA optimises, so that the count is the same on all devices.
    analysis: Any = lowered.cost_analysis()
    operations = analysis["flops"]
    compiled = lowered.compile()
    jax.block_until_ready(compiled(*arguments))  # touches the memory
    seconds: list[float] = []
    while len(seconds) < MIN_ROUNDS or sum(seconds) < MIN_SECONDS:
        seconds.append(cpu_seconds(lambda: jax.block_until_ready(compiled(*arguments))))
    memory: Any = compiled.memory_analysis()
    return {
        SECONDS: min(seconds),
        MEMORY: memory.temp_size_in_bytes / 1e9,
        OPERATIONS: operations / 1e9,
    }


def series(rows: list[Row], part: str, varied: str, unit: str) -> tuple[list[int], list[float]]:
    """The varied numbers in rising order, and the results for them."""
    pattern = re.compile(rf"{re.escape(part)}, {varied} (\d+)")
    found = {int(m[1]): y for what, y, u in rows if u == unit and (m := pattern.fullmatch(what))}
    x = sorted(found)
    return x, [found[i] for i in x]


def draw_cost(path: pathlib.Path, rows: list[Row]) -> None:
    """Draw CPU seconds and temporary memory against image size, classes and points."""
    plot = Figure(figsize=(12, 7), layout="constrained")
    grid = plot.subplots(2, 3, sharex="col")
    for column, (varied, (label, title)) in enumerate(SWEEPS.items()):
        for axes, unit in zip(grid[:, column], (SECONDS, MEMORY), strict=True):
            for part, colour in COLOURS.items():
                x, y = series(rows, part, varied, unit)
                if x:
                    axes.plot(x, y, "o-", c=colour, label=part.removesuffix(" of ViT-B"))
            axes.grid(alpha=0.3)
            if varied == "image size":
                draw_slopes(axes, rows, unit)
            else:
                axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
            axes.legend(fontsize=9)
        grid[0, column].set_title(title, fontsize=11)
        grid[1, column].set_xlabel(label)
    grid[0, 0].set_ylabel("seconds of CPU per slice, ViT-B")
    grid[1, 0].set_ylabel("temporary memory (GB), ViT-B")
    save_figure(plot, path)


def draw_slopes(axes: Any, rows: list[Row], unit: str) -> None:
    """Draw, on logarithmic axes, growth with the pixels, their square and the operations."""
    x, y = series(rows, FORWARD, "image size", unit)
    for power, style, label in ((2, "--", "as the pixels"), (4, ":", "as their square")):
        axes.plot(x, [y[0] * (i / x[0]) ** power for i in x], style, c="grey", label=label)
    _, work = series(rows, FORWARD, "image size", OPERATIONS)
    if unit == SECONDS:
        axes.plot(
            x, [y[0] * w / work[0] for w in work], "-.", c="black", lw=1, label="as the operations"
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(x, [str(i) for i in x])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
