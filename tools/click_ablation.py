"""Train the interactive model without one path of its clicks at a time, and compare.

    python -m tools.click_ablation --config=configs/phantom.py --workdir=runs/click_ablation

A path that is cut stays as it is at the start, zero: mask prompt, click maps, or click logits; or
the previous prediction is withheld from all of them. Each variant is trained with every seed of
--seeds (0,1,2), and a robot user clicks on its predictions. Rerun the same command to resume after
an interruption, and start it once more per further device. WORKDIR holds a run for each variant and
seed, and clicks.md.

Exit code 4: some runs failed. Nothing is reported until all runs are finished.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from usam_jax.data.datasets.registry import name_classes
from usam_jax.evaluation import sweep
from usam_jax.models.sam.interactive import Interactive
from usam_jax.utils import cli, console, runtime
from usam_jax.utils.errors import DataError, UsageError
from usam_jax.utils.files import write_text
from usam_jax.utils.run_flags import WORKDIR, sweep_seeds

# By the variant's name, what it withholds: a field of Hints, of Prompts, or nothing.
VARIANTS = {
    "whole": "",
    "without mask prompt": "embedding",
    "without click maps": "maps",
    "without click logits": "logits",
    "without previous prediction": "previous",
}
REPORT = "clicks.md"
SHOWN_CLICKS = (1, 3, 5, 10)
TARGET = "85"  # per cent: Dice at which the user stops clicking
NUMBER = f"NoC@{TARGET}"
CAPTION = f"""\
Mean ± standard deviation over the seeds, in per cent but for {NUMBER}. Automatic, points: Dice without
prompts, and with points from the ground truth, pooled over all slices. After clicks of a robot user:
mean Dice of the slices with foreground. {NUMBER}: mean clicks until a slice reaches {TARGET} %.
Obeyed: clicks whose pixel changed as it should. Cleared: clicks on false positives that cleared at
least half of them."""


def cut(part: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]:
    """Return an interceptor of Flax methods that withholds a part of VARIANTS from a network."""

    def intercept(
        method: Any, arguments: tuple[Any, ...], named: dict[str, Any], context: Any
    ) -> Any:
        if not (isinstance(context.module, Interactive) and context.method_name == "__call__"):
            return method(*arguments, **named)
        if part == "previous":
            return method(dataclasses.replace(arguments[0], previous=None))
        hints = method(*arguments, **named)
        zeros = jax.tree.map(jnp.zeros_like, getattr(hints, part))
        return dataclasses.replace(hints, **{part: zeros})

    return intercept


def folder_of(variant: str) -> str:
    """Return the name of a variant's folder."""
    return variant.replace(" ", "_")


def check(config: ConfigDict) -> None:
    """Raise UsageError if the training has no clicks, or the robot user makes too few."""
    if not config.model.get("interactive", False):
        raise UsageError(
            f"config.model: got {config.model.name} without clicks, expected interactive=True of usam "
            "or sam_s"
        )
    if (kind := config.prompts.kind) != "interactive":
        raise UsageError(f"config.prompts.kind: got {kind!r}, expected 'interactive'")
    if (most := config.eval.max_clicks) < SHOWN_CLICKS[-1]:
        raise UsageError(f"config.eval.max_clicks: got {most}, expected {SHOWN_CLICKS[-1]} or more")


def make_runs(config: ConfigDict, seeds: list[int]) -> list[sweep.Run]:
    """Return the runs of the sweep, all variants of a seed before the next seed."""
    runs = []
    for seed in seeds:
        for variant in VARIANTS:
            made = config.copy_and_resolve_references()
            made.seed, made.eval.prompts, made.eval.prompt_jitter_px = seed, ("none",), ()
            runs.append(sweep.Run(folder_of(variant), seed, made))
    return runs


def run_one(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Train and evaluate one run, and return the columns of the table.

    Shares of 1, and a number of clicks; None if nothing defines a value.
    """
    part = {folder_of(name): x for name, x in VARIANTS.items()}[folder.parent.name]
    with nn.intercept_methods(cut(part)) if part else contextlib.nullcontext():
        summary = sweep.train_and_evaluate(config, folder)
    clicks = summary["clicks"]
    if clicks is None:
        raise DataError(f"{folder}: no slice of {config.eval.split} has foreground to click on")
    return {
        "automatic": summary["other_prompts"]["none"]["dice"]["mean"],
        "points": summary["pooled"]["dice"]["mean"],
        **{after(n): clicks["dice"][n] for n in SHOWN_CLICKS},
        NUMBER: clicks["number_of_clicks"][TARGET]["mean"],
        "obeyed": clicks["adherence"],
        "cleared": clicks["cleared_by_negative"],
    }


def after(count: int) -> str:
    """Return the name of the column after a number of clicks."""
    return "1 click" if count == 1 else f"{count} clicks"


def make_table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Return a Markdown table: mean and standard deviation over the seeds, and each seed's Dice.

    Shares are in per cent. With one seed the deviation is 0.
    """
    first = next(iter(results.values()))
    names = [x for x in next(iter(first.values())) if x not in ("seconds", "cost")]
    header = ["clicks", *names, *(f"automatic, seed {x}" for x in first)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for variant in VARIANTS:
        rows = list(results[folder_of(variant)].values())
        cells = [spread([x[name] for x in rows], 1 if name == NUMBER else 100) for name in names]
        cells += [spread([x["automatic"]], 100).partition(" ")[0] for x in rows]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", CAPTION]) + "\n"


def spread(values: list[float | None], factor: float) -> str:
    """Return mean ± standard deviation of values times a factor, and how many are absent."""
    found = [factor * x for x in values if x is not None]
    if not found:
        return "absent"
    absent = f" ({len(values) - len(found)} absent)" if len(found) < len(values) else ""
    return f"{np.mean(found):.1f} ± {np.std(found, ddof=min(1, len(found) - 1)):.1f}{absent}"


def main(config: ConfigDict, arguments: list[str]) -> None:
    """Run the sweep, and write its table."""
    if arguments:
        raise UsageError(f"got {arguments}, expected flags\n{__doc__}")
    seeds = sweep_seeds()
    check(config)
    runtime.enable_compilation_cache()
    runtime.keep_memory()
    runtime.start_devices()
    name_classes(config)
    workdir = pathlib.Path(WORKDIR.value or "runs/click_ablation")
    sweep.open_sweep(workdir, "click ablation", config, (REPORT,))
    runs = make_runs(config, seeds)
    sweep.finish(workdir, runs, sweep.run_all(workdir, runs, run_one))
    if sweep.leave_report(workdir, runs):
        return
    table = make_table(sweep.read_results(workdir, runs))
    write_text(workdir / REPORT, table)
    print(table)
    console.info(f"{workdir}: {REPORT}")


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv)


if __name__ == "__main__":
    sys.exit(run_command_line())
