"""Train and evaluate the paper's ablations: Table 4 and Figures 5 and 6.

    python -m tools.ablation --config=configs/phantom.py --workdir=runs/ablation --seeds=0,1,2

Table 4: S (SAM with a class-wise decoder), S+U (with the U-shaped encoder), and S+U with 1, 3 and
5 points per class. Figures 5 and 6: 0 to 4 skips, with 3 points per class. Each variant is trained
with every seed and evaluated with the prompts of its training. Rerun the same command to resume
after an interruption. WORKDIR holds a run for each variant and seed, and ablation.json,
ablation.md, dice.png and iou.png.
"""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data.datasets.registry import name_classes
from usam_jax.evaluation import checks, evaluate
from usam_jax.training import loop
from usam_jax.utils import cli, console, runtime
from usam_jax.utils.errors import UsageError, list_some
from usam_jax.utils.files import atomic_write, read_json, require_folder, write_json
from usam_jax.utils.mesh import make_mesh
from usam_jax.utils.outputs import Output, check_outputs, is_json_with
from usam_jax.weights import run_checkpoint

matplotlib.use("Agg")

WORKDIR = flags.DEFINE_string("workdir", "runs/ablation", "Folder of the runs.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds; each variant is trained with all.")

Fields = dict[str, Any]


def with_points(count: int) -> Fields:
    """Return the fields for prompts of `count` points per class."""
    return {"prompts.kind": "points", "prompts.points_per_class": count}


# Fields of the config by the paper's name of the variant, in the paper's order.
TABLE: dict[str, Fields] = {
    "S": {"model.name": "sam_s", "prompts.kind": "none"},
    "S+U": {"prompts.kind": "none"},
    "S+U+1 point": with_points(1),
    "S+U+3 points": with_points(3),
    "S+U+5 points": with_points(5),
}
SKIPS: dict[str, Fields] = {
    **{f"{n} skips": {"model.num_skips": n, **with_points(3)} for n in range(4)},
    "4 skips": TABLE["S+U+3 points"],
}
KINDS = {"Dice": "dice", "IoU": "iou"}
FOLDERS = {name: name.replace(" ", "_") for name in (TABLE | SKIPS)} | {"4 skips": "S+U+3_points"}

# By variant and seed: Dice and IoU by class with their mean, and the seconds of the run.
Results = dict[str, dict[str, dict[str, Any]]]


def make_config(config: ConfigDict, fields: Fields, seed: int) -> ConfigDict:
    """Return a copy of the config with a variant's fields and seed, and one prompt mode."""
    config = config.copy_and_resolve_references()
    if "model.name" in fields:
        config = with_network(config, fields["model.name"])
    config.update_from_flattened_dict(fields)
    config.seed = seed
    config.eval.prompts = config.eval.prompt_jitter_px = ()
    return config


def with_network(config: ConfigDict, name: str) -> ConfigDict:
    """Change the config to another network, keeping fields that both networks have."""
    config.unlock()
    model = models.make_config(name)
    model.update({x: config.model[x] for x in model if x in config.model and x != "name"})
    config.model = model
    rates = config.optimizer.learning_rates
    config.optimizer.learning_rates = ConfigDict({x: rates[x] for x in models.get(name).groups})
    return config


def run_all(config: ConfigDict, workdir: pathlib.Path, seeds: list[int]) -> Results:
    """Train and evaluate the missing runs, all variants of a seed before the next seed.

    Raises UsageError if the workdir holds a sweep over another config.
    """
    path = workdir / "ablation.json"
    is_sweep = is_json_with("config", "results")
    check_outputs(
        [
            Output(workdir / x, "results", "Give another --workdir.", lambda _: is_sweep(path))
            for x in (path.name, "ablation.md", "dice.png", "iou.png")
        ],
        {},
    )
    given = json.loads(config.to_json_best_effort())
    saved = read_json(path) or {"config": given, "results": {}}
    if changed := [
        x for x in run_checkpoint.differences(given, saved["config"]) if "config.seed" not in x
    ]:
        raise UsageError(
            f"{workdir} holds a sweep over another config:\n{list_some(changed)}\n"
            "Give another --workdir, or the same values to resume that sweep."
        )
    results: Results = saved["results"]
    variants = {FOLDERS[name]: fields for name, fields in (TABLE | SKIPS).items()}
    todo = [
        (seed, name)
        for seed in seeds
        for name in variants
        if str(seed) not in results.get(name, {})
    ]
    sweep_start = time.monotonic()
    for number, (seed, name) in enumerate(todo):
        left = ""
        if number:
            seconds = (time.monotonic() - sweep_start) / number * (len(todo) - number)
            left = f"; about {console.format_time(seconds)} left"
        console.info(f"run {number + 1} of {len(todo)}: {name}, seed {seed}{left}")
        start = time.monotonic()
        summary = run_one(
            make_config(config, variants[name], seed), workdir / name / f"seed_{seed}"
        )
        results.setdefault(name, {})[str(seed)] = {
            **{kind: summary["pooled"][kind] for kind in KINDS.values()},
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(path, saved)
        jax.clear_caches()  # The next run compiles another model.
    return {name: {str(x): results[name][str(x)] for x in seeds} for name in variants}


def run_one(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Train and evaluate one run, and return the summary of its evaluation."""
    checks.check_all(config, make_mesh())
    loop.train(config, folder, evaluate.make_evaluate_fn)
    return evaluate.evaluate_workdir(config, folder)


def spread(results: Results, variant: str, kind: str, name: str) -> tuple[float, float]:
    """Return mean and standard deviation of a metric over the seeds, in per cent.

    With one seed the deviation is 0. The mean is NaN if no seed has a value for the class.
    """
    scores = [x[kind][name] for x in results[FOLDERS[variant]].values()]
    values = [100 * x for x in scores if x is not None] or [math.nan]
    return float(np.mean(values)), float(np.std(values, ddof=min(1, len(values) - 1)))


def write_table(path: pathlib.Path, results: Results) -> str:
    """Write Table 4 and a row for each number of skips as Markdown, and return the text.

    The last columns are the mean Dice of each seed.
    """
    first = results["S"]
    header = [f"{name} {kind}" for name in next(iter(first.values()))["dice"] for kind in KINDS]
    header += [f"seed {seed}" for seed in first]
    lines = [f"| | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for variant in [*TABLE, *SKIPS]:
        cells = []
        for name in next(iter(first.values()))["dice"]:
            for kind in KINDS.values():
                mean, deviation = spread(results, variant, kind, name)
                cells.append(f"{mean:.2f} ± {deviation:.2f}")
        dice = [x["dice"]["mean"] for x in results[FOLDERS[variant]].values()]
        cells += ["absent" if x is None else f"{100 * x:.2f}" for x in dice]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def draw_skips(path: pathlib.Path, results: Results, kind: str, label: str) -> None:
    """Draw the paper's Figure 5 (Dice) or 6 (IoU): bars for each class over 0 to 4 skips."""
    names = list(next(iter(results["S"].values()))[kind])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    width, colours = 0.8 / len(names), matplotlib.colormaps["tab10"]
    lowest = 100.0
    for i, name in enumerate(names):
        points = [spread(results, variant, kind, name) for variant in SKIPS]
        means, deviations = zip(*points, strict=True)
        lowest = min(lowest, *(m - d for m, d in points))
        centres = np.arange(len(SKIPS)) + (i - (len(names) - 1) / 2) * width
        axes.bar(centres, means, width, yerr=deviations, capsize=2, label=name, color=colours(i))
    axes.set_xticks(range(len(SKIPS)), list(SKIPS))
    axes.set_ylim(max(0.0, lowest - 5), None)
    axes.set_ylabel(f"{label} (%)")
    axes.legend(loc="upper left", ncols=len(names), fontsize=8)
    axes.margins(y=0.15)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Run the sweep, and write its table and plots."""
    if arguments or not all(x.isdecimal() for x in SEEDS.value):
        raise UsageError(
            f"got {arguments} and --seeds={SEEDS.value}, expected flags and integers\n{__doc__}"
        )
    runtime.enable_compilation_cache()
    runtime.keep_memory()
    name_classes(config)
    workdir = pathlib.Path(WORKDIR.value)
    require_folder(workdir)
    results = run_all(config, workdir, [int(x) for x in SEEDS.value])
    print(write_table(workdir / "ablation.md", results))
    for label, kind in KINDS.items():
        draw_skips(workdir / f"{kind}.png", results, kind, label)
    seconds = sum(x["seconds"] for by_seed in results.values() for x in by_seed.values())
    console.info(
        f"{workdir}: ablation.md, dice.png, iou.png; {console.format_time(seconds)} in all"
    )


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command_line())
