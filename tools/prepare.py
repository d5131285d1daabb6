"""Checks a data set and packs it for training.

    python -m tools.prepare SOURCE --check [--json] [--sheet=FILE.png]   # reads it, packs nothing
    python -m tools.prepare SOURCE DEST [--check]                        # packs it; first checks it
    python -m tools.prepare DEST --check                                 # compares the checksums

SOURCE: a raw data set of nnU-Net (imagesTr labelsTr dataset.json), CARE, WORD, or the published
code's WORD slices. CT only: volumes hold HU. --config=configs/NAME.py and --config.data.FIELD=VALUE
set the window, the size and the rest; without --config it is chosen by what SOURCE is.
DEST gets manifest.json, plain .npy arrays and contact_sheet.png; packing that was stopped goes on.
A file SOURCE/patients.csv (columns name and patient) tells whose the cases are.

Exit code 3: the data set has errors.
"""

import importlib
import json
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from usam_jax import cli, logs
from usam_jax.contact_sheet import save_contact_sheet
from usam_jax.data import check, sources
from usam_jax.data.packed import Packed, open_packed, packed_cases
from usam_jax.data.prepare import packing_settings, prepare
from usam_jax.errors import DataError, UsageError

CHECK = flags.DEFINE_bool("check", False, "Read every case and tell what is wrong.")
JSON = flags.DEFINE_bool("json", False, "Print the findings as JSON.")
SHEET = flags.DEFINE_string("sheet", None, "Where to draw the contact sheet of a check (.png).")

CONFIG_OF = {
    "care": "care",
    "nnunet": "nnunet",
    "word": "word",
    "word_npy": "word",
    "phantom": "phantom",
}


def default_config(source: pathlib.Path) -> ConfigDict:
    """The config for what is found at a source."""
    kind = sources.detect_kind(source)
    settings = open_packed(source).manifest["settings"] if kind == "packed" else {"kind": kind}
    name = CONFIG_OF[settings["kind"]]
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.kind = kind
    if kind == "packed":
        config.data.classes = tuple(settings["classes"])
        config.model.image_size = settings["image_size"]
    return config


def run_check(config: ConfigDict, settings: dict, sheet: pathlib.Path | None) -> None:
    """Prints all findings and draws a contact sheet. Raises DataError where there are errors."""
    findings, cases = check.check(config.data)
    summary = check.summarise(findings, cases)
    if JSON.value:
        print(json.dumps(summary, indent=1))
    elif findings:
        print(check.describe(findings))
    if sheet and any(cases.values()):
        save_contact_sheet(sheet, cases, settings)
        logs.say(f"contact sheet: {sheet}")
    counts = f"{summary['num_errors']} errors, {summary['num_warnings']} warnings"
    if summary["num_errors"]:
        raise DataError(f"{config.data.root} is not fit to train with: {counts}")
    numbers = ", ".join(f"{x} {n}" for x, n in summary["num_cases"].items())
    logs.say(f"{config.data.root} is fit to train with: {counts}; cases: {numbers}")


def print_packed(packed: Packed) -> None:
    """A table of what was packed, and the command that trains with it."""
    settings = packed.manifest["settings"]
    table = Table()
    for name in ("split", "cases", "patients", "slices", "with foreground"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split in packed.manifest["splits"]:
        found, slices = packed.cases(split), packed.slices(split)
        patients = {x["patient"] for x in found}
        known = "unknown" if None in patients else str(len(patients))
        foreground = sum(x["foreground"] for x in slices)
        table.add_row(split, str(len(found)), known, str(len(slices)), str(foreground))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    console.print(f"packed: {packed.folder}, with contact_sheet.png")
    config = f"configs/{CONFIG_OF[settings['kind']]}.py"
    console.print(
        f"train: python -m usam_jax.main --config={config} --config.data.kind=packed "
        f"--config.data.root='{packed.folder}'"
    )


def main(config: ConfigDict | None, arguments: list[str]) -> None:
    """What the command line asks for."""
    if not 1 <= len(arguments) <= 2 or not (CHECK.value or len(arguments) == 2):
        raise UsageError(f"found the arguments {arguments}, expected SOURCE DEST\n{__doc__}")
    source, *rest = map(pathlib.Path, arguments)
    config = config or default_config(source)
    config.data.root = str(source)
    sources.name_classes(config)
    settings = packing_settings(config.data)
    if CHECK.value:
        run_check(config, settings, pathlib.Path(SHEET.value) if SHEET.value else None)
    if rest:
        packed = prepare(config.data, rest[0])
        cases = packed_cases(packed.folder)
        save_contact_sheet(
            packed.folder / "contact_sheet.png", cases, settings | {"clahe_limit": 0}
        )
        print_packed(packed)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, needs_config=False))
