"""The tables that an evaluation prints."""

import pathlib
from typing import Any

import numpy as np
from rich.table import Table

from usam_jax.evaluation.report.case_table import print_cases, print_lines, print_wide
from usam_jax.utils.files import write_json
from usam_jax.utils.workdir import EvaluationFolder, Workdir

MOST_WITH_IOU = 4  # foreground classes


def percent(value: float | None, scale: float = 1.0) -> str:
    return "absent" if value is None else f"{100 * scale * value:.2f}"


def print_results(summary: dict[str, Any], folder: pathlib.Path) -> None:
    """The paper's table with our rows and its own, the table of cases, and where all that is from."""
    print_wide(pooled_table(summary))
    print_cases(summary)
    lines = [f"prompts: {summary['prompts']}"]
    if summary["trained_with"] != summary["prompts"]:
        lines.append(f"note: the model was trained with other prompts: {summary['trained_with']}")
    if summary["distance_unit"] == "mm" and summary["resolution"] == "packed":
        lines.append("cases are scored on the packed slices, not on label volumes")
    lines.append(
        f"checkpoint: step {summary['checkpoint_step']}, best on {summary['checkpoint_chosen_on']}"
    )
    print_lines(*lines, f"report: {EvaluationFolder(folder).report}")


def pooled_table(summary: dict[str, Any]) -> Table:
    """The paper's Table 2, a row for each way to prompt: Dice and IoU of each class.

    Of many classes its Table 3, turned to fit: a row for each class, Dice alone.
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
            for label, found in rows.items():
                table.add_row(label, *(percent(found[kind][name], scale) for name, kind in columns))
            table.add_section()
        return table
    table.add_column("Dice")
    for label in (*ours, *theirs):
        table.add_column(label, justify="right", max_width=12)
    for name in names:
        if name == "mean":
            table.add_section()
        cells = [percent(x["dice"][name]) for x in ours.values()]
        table.add_row(name, *cells, *(percent(x["dice"][name], 0.01) for x in theirs.values()))
    return table


def print_seeds(seeds: list[int], summaries: list[dict[str, Any]], workdir: pathlib.Path) -> None:
    """Mean and deviation of Dice and IoU over runs with several seeds, also as `seeds.json`."""
    figures: dict[str, Any] = {"seeds": seeds}
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
            figures.setdefault(kind, {})[name] = spread
            cells.append(
                f"{percent(spread['mean'])} +- {percent(spread['sd'])}" if values else "absent"
            )
        table.add_row(name, *cells)
    write_json(Workdir(workdir).seeds, figures)
    print_wide(table, f"prompts: {summaries[0]['prompts']}")
