"""Writes figures of benchmarks/results.csv into a page; part of python -m benchmarks."""

import csv
import pathlib
import re

from usam_jax.utils.files import atomic_write

# Between the marks stands a table of the figures whose names match the pattern.
TABLE = re.compile(r"(<!-- figures: (.+?) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
HEADER = "| what | first measured | at commit | last measured | at commit | unit |"


def write_page(page: pathlib.Path, results: pathlib.Path) -> None:
    """Fills the page's tables anew, one for each device: the first and the last of each figure."""
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def fill(found: re.Match[str]) -> str:
        pattern = re.compile(found[2])
        return found[1] + make_tables([x for x in rows if pattern.match(x["what"])]) + found[3]

    with atomic_write(page) as temporary:
        temporary.write_text(TABLE.sub(fill, page.read_text()))


def make_tables(rows: list[dict[str, str]]) -> str:
    devices: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        devices.setdefault(row["device"], {}).setdefault(row["what"], []).append(row)
    lines = []
    for device, figures in devices.items():
        lines += ["", f"{device}:", "", HEADER, "| --- | --- | --- | --- | --- | --- |"]
        for what, found in figures.items():
            first, last = found[0], found[-1]
            before = (first["figure"], first["commit"]) if len(found) > 1 else ("", "")
            cells = (what, *before, last["figure"], last["commit"], last["unit"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])
