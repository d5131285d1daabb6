"""The report of an evaluation: one HTML file without other files, network access or scripts."""

import base64
import html
import pathlib
import string
from importlib import resources
from typing import Any

from usam_jax.data.class_names import MEAN
from usam_jax.evaluation.report.words import clicks_by_class, sensitivity_lines, title_of_clicks
from usam_jax.evaluation.summary import METRICS, mean
from usam_jax.utils.files import write_text
from usam_jax.utils.formatting import (
    MISSING,
    VOLUMES,
    format_interval,
    format_number,
    format_value,
    percent,
    unit_of,
)
from usam_jax.utils.workdir import PER_CASE

MAX_CASES = 200
WIDE = 6  # columns; a wider table of pooled metrics is transposed
PROVENANCE = (
    "workdir",
    "checkpoint_step",
    "checkpoint_chosen_on",
    "trained_with",
    "data",
    "data_fingerprint",
    "schema_version",
)
RESOLUTIONS = {
    "source": "Each case is scored on the voxels of its own label volume.",
    "packed": "Each case is scored on the packed slices, not on the voxels of its label volume.",
}

Section = tuple[str, str, list[pathlib.Path]]  # heading, text, PNG files
Summary = dict[str, Any]


def write_report(path: pathlib.Path, summary: Summary, sections: list[Section]) -> None:
    """Write the report of an evaluation as HTML with embedded images.

    `summary` is that of `summary.json`; each of `sections` is a heading, a text and PNG files.
    """
    title = f"Evaluation on {summary['split']}, checkpoint step {summary['checkpoint_step']}"
    counts = f"{summary['num_cases']} cases, {summary['num_slices']} slices"
    body = [
        paragraph(counts),
        prompts_box(summary["prompts"], summary["automatic"]),
        *(paragraph(line) for line in sensitivity_lines(summary)),
        pooled_section(summary),
    ]
    if summary["clicks"]:
        body.append(clicks_section(summary["clicks"]))
    body += [
        cases_section(summary),
        *(pictures_section(*section) for section in sections),
        cases_list(summary),
        heading("Provenance"),
        table((), [[x.replace("_", " "), known(summary[x])] for x in PROVENANCE], kind="words"),
    ]
    page = string.Template(read_template("report.html")).substitute(
        title=escape(title), style=read_template("report.css"), body="\n".join(body)
    )
    write_text(path, page)


def read_template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def escape(value: Any) -> str:
    return html.escape(str(value))


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(head: Any, rows: list[Any], caption: str = "", kind: str = "metrics") -> str:
    """A table whose rows start with their name.

    A row of one cell is a heading for those below.
    """
    lines = [f'<div class="scroll"><table class="{kind}">']
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    if head:
        cells = "".join(f'<th scope="col">{escape(x)}</th>' for x in head)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for name, *values in rows:
        if values:
            cells = "".join(f"<td>{escape(x)}</td>" for x in values)
            lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
        else:
            span = f'scope="rowgroup" colspan="{len(head)}"'
            lines.append(f'<tr class="group"><th {span}>{escape(name)}</th></tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def known(value: Any) -> str:
    return MISSING if value is None else str(value)


def clicks_section(clicks: dict[str, Any]) -> str:
    """A table of Dice by class after clicks of the robot user."""
    columns, rows = clicks_by_class(clicks)
    return table(columns, rows, title_of_clicks(clicks))


def prompts_box(prompts: str, automatic: bool) -> str:
    """The source of the prompts, with a warning unless there were none."""
    if automatic:
        words = "The model had no prompts: these are automatic results."
        return f'<div class="box">{paragraph(words)}</div>'
    warning = "Prompts from the ground truth were used: these are not automatic results."
    inner = f"<p><strong>{escape(warning)}</strong></p>{paragraph(f'Prompts: {prompts}.')}"
    return f'<div class="box warning" role="note">{inner}</div>'


def pooled_section(summary: Summary) -> str:
    """Pooled Dice and IoU of each prompt mode, next to the results that the paper reports."""
    words = "Pooled over the pixels of all slices, for each source of prompts."
    if summary["paper"]:
        words += " Rows that start with 'paper' are results that the paper reports, not results of this run."
    parts = [heading("Pooled metrics"), paragraph(words)]
    names = [*summary["classes"][1:], MEAN]
    for kind, title in (("dice", "Dice (%)"), ("iou", "IoU (%)")):
        rows = [
            ["this run, prompts: " + summary["prompts"], *pooled(summary["pooled"], kind, names)]
        ]
        for other in summary["other_prompts"].values():
            rows.append(["this run, prompts: " + other["prompts"], *pooled(other, kind, names)])
        for row in (x for x in summary["paper"] if x[kind]):
            stated = (row[kind].get(name) for name in names)
            rows.append([f"paper: {row['name']}", *(format_number(x) for x in stated)])
        head = ["", *names]
        if len(names) > WIDE:
            head, *rows = [list(column) for column in zip(head, *rows, strict=True)]
        parts.append(table(head, rows, title))
    return "\n".join(parts)


def pooled(metrics: Summary, kind: str, names: list[str]) -> list[str]:
    return [percent(metrics[kind][name]) for name in names]


def cases_section(summary: Summary) -> str:
    """Number of cases by class and status, and the statistics of each metric over the cases."""
    interval, policy = summary["interval"], summary["empty_policy"]
    level = f"{100 * interval['level']:g} % interval"
    method = f"{interval['method']}, {interval['resamples']} resamples, seed {interval['seed']}"
    return "\n".join(
        [
            heading("Metrics over the cases"),
            paragraph(RESOLUTIONS[summary["resolution"]]),
            paragraph(f"Policy for empty classes ({policy['name']}): {policy['meaning']}."),
            paragraph(
                f"{level}: {method}. n is the number of cases in which the metric is defined."
            ),
            status_table(summary),
            metric_table(summary, level),
        ]
    )


def status_table(summary: Summary) -> str:
    """Number of cases by class and status, tolerance of NSD and, if there are any, lesions."""
    cases, tolerances = summary["cases"], summary["nsd_tolerance"]
    with_lesions = any("lesions" in x for x in cases.values())
    unit = summary["distance_unit"]
    head = ["class", "ok", "missed", "false alarm", "absent", f"NSD tolerance ({unit})"]
    if with_lesions:
        head += ["lesions", "found", "sensitivity (%)", "false lesions"]
    rows = []
    for name, tolerance in tolerances.items():
        statistics = cases[name]
        row = [name, *(statistics[x] for x in ("ok", "missed", "false_alarm", "absent"))]
        row.append(f"{tolerance:g}")
        if with_lesions:
            lesions = statistics.get("lesions", {})
            row += [known(lesions.get("total")), known(lesions.get("found"))]
            row += [
                format_value(lesions.get("sensitivity"), "sensitivity"),
                known(lesions.get("false")),
            ]
        rows.append(row)
    return table(head, rows, "Cases by class")


def metric_table(summary: Summary, level: str) -> str:
    """For each metric the statistics of each class and of the mean over the classes."""
    rows: list[list[Any]] = []
    for metric in (*METRICS, *VOLUMES):
        digits = digits_of(metric, summary)
        rows.append([title_of(metric, summary)])
        for name, statistics in summary["cases"].items():
            if metric in statistics:
                x = statistics[metric]
                cells = [format_value(x[key], metric, digits) for key in ("mean", "sd", "median")]
                rows.append([name, x["n"], *cells, format_interval(x["ci95"], metric, digits)])
    head = ["", "n", "mean", "standard deviation", "median", level]
    return table(head, rows, "Statistics over the cases")


def title_of(metric: str, summary: Summary) -> str:
    name = "predicted volume" if metric == "volume" else metric.replace("_", " ")
    return f"{name} ({unit_of(metric, summary)})"


def digits_of(metric: str, summary: Summary) -> int:
    """Number of decimals: none for volumes in pixels."""
    return 0 if metric in VOLUMES and summary["volume_unit"] == "pixels" else 2


def pictures_section(title: str, text: str, pictures: list[pathlib.Path]) -> str:
    parts = [heading(title), paragraph(text)]
    for path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        alt = escape(f"{title}: {path.stem}")
        parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
    return "\n".join(parts)


def cases_list(summary: Summary) -> str:
    """A row for each case and class, starting with the case of the worst mean Dice."""

    def rank(case: Summary) -> tuple[bool, float]:
        dice = mean([x["Dice"] for x in case["metrics"].values()])
        return dice is None, dice or 0.0

    shown = ("Dice", "HD95", "NSD", *VOLUMES)
    digits = {metric: digits_of(metric, summary) for metric in shown}
    rows = []
    for case in sorted(summary["metric_per_case"], key=rank)[:MAX_CASES]:
        for number, score in case["metrics"].items():
            cells = [format_value(score[x], x, digits[x]) for x in shown]
            status = score["status"].replace("_", " ")
            rows.append([case["case"], summary["classes"][int(number)], status, *cells])
    words = f"The case with the worst mean Dice comes first. All metrics of all cases are in {PER_CASE}."
    if summary["num_cases"] > MAX_CASES:
        words = (
            f"The {MAX_CASES} cases with the worst mean Dice of {summary['num_cases']}. "
            f"The other cases and all metrics are in {PER_CASE}."
        )
    head = ["case", "class", "status", *(title_of(x, summary) for x in shown)]
    return "\n".join([heading("Cases"), paragraph(words), table(head, rows, kind="cases")])
