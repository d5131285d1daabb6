"""Figures over cases as a table that people read."""

from typing import Any

from rich.console import Console
from rich.table import Table

from usam_jax.evaluation.case_metrics import ABSENT, FALSE_ALARM, MISSED, OK

NONE = "-"
WIDTH = 400  # more than any table


def format_value(value: float | None, metric: str) -> str:
    """A figure in the unit of `unit_of`."""
    if value is None:
        return NONE
    return f"{value:.2f}" if metric == "HD95" else f"{100 * value:.2f}"


def unit_of(metric: str, summary: dict[str, Any]) -> str:
    return summary["distance_unit"] if metric == "HD95" else "%"


def format_interval(interval: list[float] | None, metric: str) -> str:
    if interval is None:
        return ""
    low, high = (format_value(x, metric) for x in interval)
    return f" [{low}, {high}]"


def format_spread(figures: dict[str, Any], metric: str) -> str:
    """Mean and standard deviation."""
    text = format_value(figures["mean"], metric)
    return text if figures["sd"] is None else f"{text} ± {format_value(figures['sd'], metric)}"


def format_lesions(lesions: dict[str, Any]) -> str:
    share = format_value(lesions["sensitivity"], "sensitivity")
    return f"{lesions['found']}/{lesions['total']} ({share} %), {lesions['false']} false"


def print_wide(table: Table, *lines: str) -> None:
    """A table with lines below it; never cut, a narrow terminal breaks its lines instead."""
    make_console().print(table)
    print_lines(*lines)


def print_lines(*lines: str) -> None:
    for line in lines:
        make_console().print(line)


def make_console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False, width=WIDTH)


def print_cases(summary: dict[str, Any]) -> None:
    """The figures of `summary.summarise`, a row for each class and one for their mean."""
    statistics = summary["cases"]
    with_lesions = any("lesions" in x for x in statistics.values())
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
    for name, figures in statistics.items():
        counts = [""] * 4
        if name == "mean":
            table.add_section()
        else:
            present = figures[OK] + figures[MISSED]
            counts = [
                str(x) for x in (present, *(figures[y] for y in (MISSED, FALSE_ALARM, ABSENT)))
            ]
        dice = figures["Dice"]
        cells = [
            format_spread(dice, "Dice") + format_interval(dice["ci95"], "Dice"),
            format_value(dice["median"], "Dice"),
        ]
        for metric in ("HD95", "NSD"):
            cells.append(format_spread(figures[metric], metric))
            cells.append(format_value(figures[metric]["median"], metric))
        if with_lesions:
            cells.append(format_lesions(figures["lesions"]) if "lesions" in figures else "")
        table.add_row(name, *counts, *cells)
    policy = summary["empty_policy"]
    print_wide(
        table,
        f"policy {policy['name']}: {policy['meaning']}",
        f"interval: {summary['interval']['method']}; NSD within {format_tolerance(summary)}",
    )


def format_tolerance(summary: dict[str, Any]) -> str:
    """NSD's tolerance: one number where the classes share it."""
    tolerances, unit = summary["nsd_tolerance"], summary["distance_unit"]
    if len(set(tolerances.values())) == 1:
        return f"{next(iter(tolerances.values())):g} {unit}"
    return f"{', '.join(f'{x:g} ({name})' for name, x in tolerances.items())} {unit}"
