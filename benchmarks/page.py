"""Fill the tables of a page with rows of results.csv."""

import csv
import pathlib
import re

from usam_jax.utils.files import atomic_write

# Between the marks stands a table of the results whose names match the pattern from their start.
TABLE = re.compile(r"(<!-- results: (.+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
HEADER = "| what | first value | at commit | last value | at commit | unit |"


def write_page(page: pathlib.Path, results: pathlib.Path) -> None:
    """Fill the page's tables, one per device, with the first and the last value of each result."""
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def fill(found: re.Match[str]) -> str:
        pattern = re.compile(found[2])
        return found[1] + make_tables([x for x in rows if pattern.match(x["what"])]) + found[3]

    with atomic_write(page) as temporary:
        temporary.write_text(TABLE.sub(fill, page.read_text()))


def make_tables(rows: list[dict[str, str]]) -> str:
    """Markdown tables, one per device.

    A result that was measured once has no first value.
    """
    devices: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        devices.setdefault(row["device"], {}).setdefault(row["what"], []).append(row)
    lines = []
    for device, results in devices.items():
        lines += ["", f"{device}:", "", HEADER, "| --- | --- | --- | --- | --- | --- |"]
        for what, found in results.items():
            first, last = found[0], found[-1]
            before = (first["value"], first["commit"]) if len(found) > 1 else ("", "")
            cells = (what, *before, last["value"], last["commit"], last["unit"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])
