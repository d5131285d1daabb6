"""Train and evaluate the paper's ablations: Table 4 and Figures 5 and 6.

    python -m tools.ablation --config=configs/phantom.py --workdir=runs/ablation --seeds=0,1,2

Table 4: S (SAM with a class-wise decoder), S+U (with the U-shaped encoder), and S+U with 1, 3 and
5 points per class. Figures 5 and 6: 0 to 4 skips, with 3 points per class. Each variant is trained
with every seed and evaluated with the prompts of its training. Rerun the same command to resume
after an interruption, and start it once more per further device. WORKDIR holds a run for each
variant and seed, and ablation.md, dice.png and iou.png.

Exit code 4: some runs failed. Nothing is reported until all runs are finished.
"""

import math
import pathlib
import sys
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from usam_jax.data.datasets.registry import name_classes
from usam_jax.evaluation import sweep
from usam_jax.utils import cli, console, runtime
from usam_jax.utils.errors import UsageError
from usam_jax.utils.files import atomic_write
from usam_jax.utils.run_flags import WORKDIR, sweep_seeds

matplotlib.use("Agg")

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
    **{f"{n} skip{'s' * (n != 1)}": {"model.num_skips": n, **with_points(3)} for n in range(4)},
    "4 skips": TABLE["S+U+3 points"],
}
KINDS = {"Dice": "dice", "IoU": "iou"}
FOLDERS = {name: name.replace(" ", "_") for name in (TABLE | SKIPS)} | {"4 skips": "S+U+3_points"}

# By variant and seed: Dice and IoU by class with their mean, and the seconds of the run.
Results = dict[str, dict[int, dict[str, Any]]]


def make_runs(config: ConfigDict, seeds: list[int]) -> list[sweep.Run]:
    """Return the runs of the sweep, all variants of a seed before the next seed."""
    variants = {FOLDERS[name]: fields for name, fields in (TABLE | SKIPS).items()}
    made = {}
    for name, fields in variants.items():
        network = fields.get("model.name", config.model.name)
        base = config if network == config.model.name else cli.network_config(network)
        name_classes(base)
        made[name] = sweep.one_mode(base, fields, config.seed)
    return [
        sweep.Run(name, seed, sweep.one_mode(made[name], {}, seed))
        for seed in seeds
        for name in variants
    ]


def run_one(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Train and evaluate one run, and return Dice and IoU by class."""
    pooled = sweep.train_and_evaluate(config, folder)["pooled"]
    return {kind: pooled[kind] for kind in KINDS.values()}


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
    figure.legend(loc="outside upper center", ncols=min(len(names), 6), fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Run the sweep, and write its table and plots."""
    if arguments:
        raise UsageError(f"got {arguments}, expected flags\n{__doc__}")
    seeds = sweep_seeds()
    runtime.enable_compilation_cache()
    runtime.keep_memory()
    runtime.start_devices()
    name_classes(config)
    workdir = pathlib.Path(WORKDIR.value or "runs/ablation")
    sweep.open_sweep(workdir, "ablation", config, ("ablation.md", "dice.png", "iou.png"))
    runs = make_runs(config, seeds)
    sweep.finish(workdir, runs, sweep.run_all(workdir, runs, run_one))
    if sweep.leave_report(workdir, runs):
        return
    results = sweep.read_results(workdir, runs)
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
