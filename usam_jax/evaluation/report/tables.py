"""Tables on the terminal: pooled metrics, metrics over cases, several seeds, comparisons."""

import pathlib
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from usam_jax.data.class_names import MEAN
from usam_jax.evaluation.case_metrics import ABSENT, FALSE_ALARM, MISSED, OK
from usam_jax.evaluation.report.words import (
    clicks_by_class,
    describe_clicks,
    sensitivity_lines,
    title_of_clicks,
)
from usam_jax.utils.files import write_json
from usam_jax.utils.formatting import (
    format_interval,
    format_mean_sd,
    format_p,
    format_value,
    percent,
    unit_of,
)
from usam_jax.utils.workdir import EvaluationFolder, Workdir

MOST_WITH_IOU = 4  # foreground classes
WIDTH = 400  # characters, more than any table has
P_NOTE = (
    "p: two-sided Wilcoxon signed-rank test; only p (Holm) is corrected for the number of classes"
)


def print_wide(table: Table, *lines: str) -> None:
    """Print a table at its full width, whatever the terminal's, and lines below it."""
    make_console().print(table)
    print_lines(*lines)


def print_lines(*lines: str) -> None:
    for line in lines:
        make_console().print(line)


def make_console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=WIDTH)


def print_results(summary: dict[str, Any], folder: pathlib.Path) -> None:
    """Print the pooled table with the paper's rows, the table of cases, and their provenance."""
    print_wide(pooled_table(summary))
    print_cases(summary)
    if summary["clicks"]:
        print_wide(clicks_table(summary["clicks"]))
    lines = [f"prompts: {summary['prompts']}"]
    if summary["trained_with"] != summary["prompts"]:
        lines.append(f"note: the model was trained with other prompts: {summary['trained_with']}")
    lines += sensitivity_lines(summary)
    if summary["clicks"]:
        lines.append(describe_clicks(summary["clicks"]))
    if summary["distance_unit"] == "mm" and summary["resolution"] == "packed":
        lines.append("cases are scored on the packed slices, not on label volumes")
    lines.append(
        f"checkpoint: step {summary['checkpoint_step']}, best on {summary['checkpoint_chosen_on']}"
    )
    print_lines(*lines, f"report: {EvaluationFolder(folder).report}")


def pooled_table(summary: dict[str, Any]) -> Table:
    """Pooled Dice and IoU of each class, a row per prompt mode, as in the paper's Table 2.

    With more than `MOST_WITH_IOU` classes it is transposed and has Dice alone, as Table 3.
    """
    ours = {summary["prompts"]: summary["pooled"]}
    ours |= {other["prompts"]: other for other in summary["other_prompts"].values()}
    theirs = {f"paper: {row['name']}": row for row in summary["paper"]}
    names = list(summary["pooled"]["dice"])
    table = Table(
        title=f"{summary['split']}: {summary['num_slices']} slices pooled, per cent",
        title_justify="left",
    )
    if len(names) - 1 <= MOST_WITH_IOU:
        columns = [(name, kind) for name in names for kind in ("dice", "iou")]
        table.add_column("prompts")
        for name, kind in columns:
            table.add_column(f"{name} {'Dice' if kind == 'dice' else 'IoU'}", justify="right")
        for rows, scale in ((ours, 1.0), (theirs, 0.01)):
            for label, row in rows.items():
                table.add_row(
                    label, *(pooled_cell(row[kind][name], scale) for name, kind in columns)
                )
            table.add_section()
        return table
    table.add_column("Dice")
    for label in (*ours, *theirs):
        table.add_column(label, justify="right", max_width=12)
    for name in names:
        if name == MEAN:
            table.add_section()
        cells = [percent(x["dice"][name]) for x in ours.values()]
        table.add_row(name, *cells, *(pooled_cell(x["dice"][name], 0.01) for x in theirs.values()))
    return table


def clicks_table(clicks: dict[str, Any]) -> Table:
    """Dice of each class after clicks of the robot user, and obeyed clicks."""
    columns, rows = clicks_by_class(clicks)
    table = Table(title=title_of_clicks(clicks), title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def pooled_cell(value: float | None, scale: float) -> str:
    return percent(None if value is None else scale * value)


def print_cases(summary: dict[str, Any]) -> None:
    """Print the statistics of `summary.summarise`, a row for each class and one for their mean."""
    with_lesions = any("lesions" in x for x in summary["cases"].values())
    table = Table(title=f"{summary['num_cases']} cases", title_justify="left")
    table.add_column("class")
    for name in ("present", "missed", "false\nalarms", "absent"):
        table.add_column(name, justify="right")
    table.add_column("Dice (%)\nmean ± sd [95 %]", justify="right")
    table.add_column("Dice (%)\nmedian", justify="right")
    for metric in ("HD95", "NSD"):
        unit = unit_of(metric, summary)
        table.add_column(f"{metric} ({unit})\nmean ± sd", justify="right")
        table.add_column(f"{metric} ({unit})\nmedian", justify="right")
    if with_lesions:
        table.add_column("lesions found", justify="right")
    for name, statistics in summary["cases"].items():
        counts = [""] * 4
        if name == MEAN:
            table.add_section()
        else:
            present = statistics[OK] + statistics[MISSED]
            counts = [
                str(x) for x in (present, *(statistics[y] for y in (MISSED, FALSE_ALARM, ABSENT)))
            ]
        dice = statistics["Dice"]
        cells = [format_mean_sd(dice, "Dice"), format_value(dice["median"], "Dice")]
        if dice["ci95"]:
            cells[0] += f" {format_interval(dice['ci95'], 'Dice')}"
        for metric in ("HD95", "NSD"):
            cells.append(format_mean_sd(statistics[metric], metric))
            cells.append(format_value(statistics[metric]["median"], metric))
        if with_lesions:
            cells.append(format_lesions(statistics["lesions"]) if "lesions" in statistics else "")
        table.add_row(name, *counts, *cells)
    policy = summary["empty_policy"]
    print_wide(
        table,
        f"policy {policy['name']}: {policy['meaning']}",
        f"interval: {summary['interval']['method']}; NSD within {format_tolerance(summary)}",
    )


def format_lesions(lesions: dict[str, Any]) -> str:
    share = format_value(lesions["sensitivity"], "sensitivity")
    return f"{lesions['found']}/{lesions['total']} ({share} %), {lesions['false']} false"


def format_tolerance(summary: dict[str, Any]) -> str:
    """The tolerance of NSD with its unit: one number if all classes share it."""
    tolerances, unit = summary["nsd_tolerance"], summary["distance_unit"]
    if len(set(tolerances.values())) == 1:
        return f"{next(iter(tolerances.values())):g} {unit}"
    return f"{', '.join(f'{x:g} ({name})' for name, x in tolerances.items())} {unit}"


def print_seeds(seeds: list[int], summaries: list[dict[str, Any]], workdir: pathlib.Path) -> None:
    """Print mean and standard deviation over the seeds and write them to `seeds.json`."""
    spreads: dict[str, Any] = {"seeds": seeds}
    table = Table(title=f"{len(seeds)} seeds: {seeds}", title_justify="left")
    for name in ("class", "Dice (%)", "IoU (%)"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in summaries[0]["pooled"]["dice"]:
        cells = []
        for kind in ("dice", "iou"):
            found = [x["pooled"][kind][name] for x in summaries]
            values = [x for x in found if x is not None]
            spread: dict[str, Any] = {"values": values}
            if values:
                spread |= {
                    "mean": float(np.mean(values)),
                    "sd": float(np.std(values, ddof=min(1, len(values) - 1))),
                }
            spreads.setdefault(kind, {})[name] = spread
            cells.append(format_mean_sd(spread, kind) if values else percent(None))
        table.add_row(name, *cells)
    write_json(Workdir(workdir).seeds, spreads)
    print_wide(table, f"prompts: {summaries[0]['prompts']}")


def print_comparison(result: dict[str, Any]) -> None:
    """Print the table of classes, how to read it, and the table of the cases that changed most."""
    metric = result["metric"]
    unit = unit_of(metric, result)
    table = Table(
        title=f"{metric} ({unit}) of {result['num_cases']} cases\nA: {result['a']}\nB: {result['b']}",
        title_justify="left",
    )
    for name in ("class", "pairs", "left out", "A", "B", "B - A [95 %]", "median"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in ("B better", "equal", "A better", "p", "p (Holm)"):
        table.add_column(name, justify="right")
    for name, statistics in result["classes"].items():
        if name == MEAN:
            table.add_section()
        difference = format_value(statistics["difference"], metric)
        if statistics["ci95"]:
            difference += f" {format_interval(statistics['ci95'], metric)}"
        table.add_row(
            name,
            str(statistics["n"]),
            str(statistics["left_out"]),
            *(format_value(statistics[x], metric) for x in ("a", "b")),
            difference,
            format_value(statistics["median_difference"], metric),
            *(str(statistics[x]) for x in ("b_better", "equal", "a_better")),
            format_p(statistics["p"]),
            format_p(statistics["p_holm"]) if "p_holm" in statistics else "",
        )
    one_sided = sum(x["one_sided"] for x in result["classes"].values())
    notes = [
        P_NOTE,
        "left out: no value in A, B or both; the mean is over the classes that have both",
    ]
    if one_sided:
        notes.append(
            f"note: {one_sided} of those left out have a value in only one of A and B; "
            "comparison.csv (--out) names them"
        )
    print_wide(table, *notes)
    if result["most_changed"]:
        print_wide(changes_table(result["most_changed"], metric))


def changes_table(rows: list[dict[str, Any]], metric: str) -> Table:
    table = Table(title="changed most", title_justify="left")
    for name in ("case", "class", "A", "B", "B - A", "status in A", "status in B"):
        table.add_column(name, justify="right" if name in ("A", "B", "B - A") else "left")
    for row in rows:
        values = (format_value(row[x], metric) for x in ("a", "b", "difference"))
        table.add_row(row["case"], row["class"], *values, row["a_status"], row["b_status"])
    return table
