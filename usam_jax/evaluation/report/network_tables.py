"""The table of a comparison of networks as Markdown, CSV and LaTeX."""

import pathlib
from typing import Any

from usam_jax.data.class_names import MEAN, metric_key
from usam_jax.evaluation.report.tables import MOST_WITH_IOU
from usam_jax.utils.files import write_csv, write_text
from usam_jax.utils.formatting import (
    MISSING,
    format_interval,
    format_mean_sd,
    format_number,
    format_p,
    format_value,
    percent,
)

METRICS = {"dice": "Dice", "iou": "IoU"}
LATEX = {
    "\\": r"\textbackslash{}",
    **{x: rf"\{x}" for x in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    MISSING: "--",
}
CSV_COLUMNS = ("row", "network", "prompts", "seeds")


def metric_columns(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Return class and metric of each column, IoU only for few classes, as in the paper."""
    names = [*table["classes"][1:], MEAN]
    few = len(names) - 1 <= MOST_WITH_IOU
    return [(x, y) for x in names for y in (METRICS if few else ["dice"])]


def make_cells(table: dict[str, Any]) -> list[list[str]]:
    """Return the header and the rows of the table as text, the paper's row below ours."""
    columns, against = metric_columns(table), table["against"]
    header = ["network", "prompts", *(f"{name} {METRICS[kind]}" for name, kind in columns)]
    header += [f"mean Dice, 95 % interval over {table['resampled']}"]
    if against:
        header += [f"Dice of the cases minus {against} [95 %]", "p (Holm)"]
    header += ["parameters (M)", "GFLOP", "slices/s predicted", "slices/s trained"]
    header += ["budget", "hardware"]
    lines = [header]
    for row in table["rows"]:
        lines.append(own_cells(row, columns, against))
        if row["paper"]:
            cells = [paper_cell(row["paper"][kind].get(name)) for name, kind in columns]
            words = [f"paper: {row['paper']['name']}", "", *cells]
            lines.append(words + [""] * (len(header) - len(words)))
    return lines


def own_cells(
    row: dict[str, Any], columns: list[tuple[str, str]], against: str | None
) -> list[str]:
    """Return the cells of one of our rows."""
    cells = [row["name"], row["prompts"]]
    for name, kind in columns:
        found = row[kind][name]
        cells.append(percent(None) if found["mean"] is None else format_mean_sd(found, kind))
    cells.append(format_interval(row["ci95"], "Dice"))
    if against:
        cells += difference_cells(row["against"])
    numbers = [row["parameters"] / 1e6, row["flop"] / 1e9]
    numbers += [row["predicted_per_second"], row["trained_per_second"]]
    cells += [format_digits(x) for x in numbers]
    return [*cells, describe_budget(row), "; ".join(row["devices"])]


def format_digits(value: float) -> str:
    """Return a number with three digits, without an exponent up to a million."""
    return f"{float(f'{value:.3g}'):g}"


def difference_cells(test: dict[str, Any] | None) -> list[str]:
    """Return the difference with its interval, and the corrected p-value."""
    if test is None:
        return ["", ""]
    difference = (
        f"{format_value(test['difference'], 'Dice')} {format_interval(test['ci95'], 'Dice')}"
    )
    return [difference, format_p(test["p_holm"])]


def describe_budget(row: dict[str, Any]) -> str:
    """Return what each run of a row was trained with, and the seeds."""
    seeds = f"seed{'s' * (len(row['seeds']) > 1)} {', '.join(map(str, row['seeds']))}"
    count, window = row["batch_size"], row["window"]
    batch = f"{count} slices" if window == 1 else f"{count} windows of {window} slices"
    side = row["image_size"]
    return f"{row['epochs']} epochs, {row['steps']} steps of {batch} of {side}x{side}, {seeds}"


def paper_cell(value: float | None) -> str:
    """Return a value that the paper reports in per cent, empty if it reports none."""
    return "" if value is None else format_number(value)


def describe_table(table: dict[str, Any]) -> list[str]:
    """Return the sentences below the table."""
    count, unit = table["num_resampled"], table["resampled"]
    pooled = (
        f"Dice and IoU in per cent, pooled over the {table['num_slices']} slices of the split "
        f"{table['split']}: mean and standard deviation over the seeds. The interval is a "
        f"percentile bootstrap over {count} {unit} of the mean Dice, averaged over the seeds."
    )
    lines = [pooled]
    if unit != "patients":
        lines.append(
            f"The data set does not name patients, so the intervals and tests treat {unit} as "
            "independent; if several come from one patient, they are too narrow."
        )
    if table["against"]:
        lines.append(
            f"Tests: Dice of each of {table['num_cases']} cases (mean over classes and seeds), "
            f"network minus {table['against']}; two-sided Wilcoxon signed-rank test with Holm's "
            "correction over the networks."
        )
    else:
        lines.append("No network is tested against another: the reference has no finished run.")
    lines.append(
        "GFLOP: products and convolutions of one slice without prompts, a multiply-add counted as "
        "two. Slices/s: the median over the seeds, predicted without reading data."
    )
    if table["left_out"]:
        lines.append(f"Runs without a result are left out: {'; '.join(table['left_out'])}.")
    if any(x["paper"] for x in table["rows"]):
        lines.append("Rows of the paper: its printed results on its test set, for its own budget.")
    return lines


def write_markdown(path: pathlib.Path, table: dict[str, Any]) -> str:
    """Write the table and the sentences below it, and return the text."""
    header, *rows = make_cells(table)
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(x.replace('|', chr(92) + '|') for x in row)} |" for row in rows]
    text = "\n".join([*lines, "", *describe_table(table)]) + "\n"
    write_text(path, text)
    return text


def write_latex(path: pathlib.Path, table: dict[str, Any]) -> None:
    """Write a `tabular` with the rules of the package booktabs, and the sentences as comments."""
    header, *rows = [[escape(x) for x in row] for row in make_cells(table)]
    lines = [f"% {x}" for x in describe_table(table)]
    lines += [r"\begin{tabular}{ll" + "r" * (len(header) - 4) + "ll}", r"\toprule"]
    lines += [" & ".join(header) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    write_text(path, "\n".join(lines) + "\n")


def escape(text: str) -> str:
    """Return text with the characters that LaTeX would interpret replaced."""
    return "".join(LATEX.get(x, x) for x in text)


def write_numbers(path: pathlib.Path, table: dict[str, Any]) -> None:
    """Write the numbers of the table as CSV, a line per row, shares from 0 to 1."""
    names = [*table["classes"][1:], MEAN]
    metrics = [(kind, name) for kind in METRICS for name in names]
    plain = ("parameters", "flop", "predicted_per_second", "trained_per_second")
    budget = ("epochs", "steps", "batch_size", "window", "image_size", "seconds")
    columns = [*CSV_COLUMNS]
    columns += [f"{kind}_{metric_key(name)}{x}" for kind, name in metrics for x in ("", "_sd")]
    columns += ["dice_mean_low", "dice_mean_high", "difference", "difference_low"]
    columns += ["difference_high", "p", "p_holm", *plain, *budget, "devices"]
    lines: list[list[Any]] = []
    for row in table["rows"]:
        test = row["against"] or {}
        line = ["ours", row["name"], row["mode"], " ".join(map(str, row["seeds"]))]
        line += [row[kind][name][x] for kind, name in metrics for x in ("mean", "sd")]
        line += [*(row["ci95"] or (None, None)), test.get("difference")]
        line += [*(test.get("ci95") or (None, None)), test.get("p"), test.get("p_holm")]
        line += [*(row[x] for x in (*plain, *budget)), "; ".join(row["devices"])]
        lines.append(line)
        if row["paper"]:
            shares = [row["paper"][kind].get(name) for kind, name in metrics]
            line = ["paper", row["name"], row["mode"], None]
            line += [y for x in shares for y in (None if x is None else round(x / 100, 6), None)]
            lines.append(line + [None] * (len(columns) - len(line)))
    write_csv(path, columns, lines)
