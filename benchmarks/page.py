"""Fill the tables of a page with rows of results.csv."""

import csv
import pathlib
import re

from usam_jax.utils.files import atomic_write

# Between the marks stands a table of the results whose names match the pattern from their start.
TABLE = re.compile(r"(<!-- results: (.+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
# Between these, a row for each network: its speed, memory and compilation.
SPEEDS = re.compile(r"(<!-- speeds -->\n).*?(<!-- end of speeds -->)", re.DOTALL)
SPEED = re.compile(
    r"(?P<kind>[^:]*?):? ?(?P<task>evaluating|training) (?P<network>\w+, \d+x\d+, .+)"
)
SPEED_COLUMNS = (
    ("", "evaluating", "evaluation, slices/s"),
    ("the same, of a matrix product", "evaluating", "evaluation, share"),
    ("total memory of", "evaluating", "evaluation, GB"),
    ("", "training", "training, slices/s"),
    ("the same, of a matrix product", "training", "training, share"),
    ("total memory of", "training", "training, GB"),
    ("compiling for", "training", "compiling, s"),
)
HEADER = "| what | first value | at commit | last value | at commit | unit |"


def write_page(page: pathlib.Path, results: pathlib.Path) -> None:
    """Fill the tables of a page between their marks, one per device."""
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def fill(found: re.Match[str]) -> str:
        pattern = re.compile(found[2])
        return found[1] + make_tables([x for x in rows if pattern.match(x["what"])]) + found[3]

    with atomic_write(page) as temporary:
        text = TABLE.sub(fill, page.read_text())
        speeds = make_speed_tables(rows)
        temporary.write_text(SPEEDS.sub(lambda found: found[1] + speeds + found[2], text))


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


def make_speed_tables(rows: list[dict[str, str]]) -> str:
    """Markdown tables, one per device, with the last values of each network."""
    devices: dict[str, dict[str, dict[tuple[str, str], dict[str, str]]]] = {}
    for row in rows:
        if found := SPEED.fullmatch(row["what"]):
            results = devices.setdefault(row["device"], {}).setdefault(found["network"], {})
            results.pop((found["kind"], found["task"]), None)  # so that the last one is the newest
            results[found["kind"], found["task"]] = row
    lines = []
    for device, networks in devices.items():
        names = ["network", "size and batch", *(name for *_, name in SPEED_COLUMNS), "at commit"]
        lines += ["", f"{device}:", "", f"| {' | '.join(names)} |"]
        lines.append(f"| --- | --- |{' ---: |' * len(SPEED_COLUMNS)} --- |")
        for network, results in sorted(networks.items()):
            name, _, about = network.partition(", ")
            found_rows = [results.get((kind, task)) for kind, task, _ in SPEED_COLUMNS]
            values = [row["value"] if row else "" for row in found_rows]
            commit = next(reversed(results.values()))["commit"]
            lines.append(f"| {' | '.join((f'`{name}`', about, *values, commit))} |")
    return "\n".join([*lines, "", ""])
