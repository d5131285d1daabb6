"""Checks a data set and packs it for training.

    python -m tools.prepare SOURCE --check [--json] [--sheet=FILE.png]   # checks, packs nothing
    python -m tools.prepare SOURCE DEST [--check]                        # packs, after a check
    python -m tools.prepare DEST --check                                 # verifies the checksums

SOURCE is a raw data set of nnU-Net (imagesTr labelsTr dataset.json), CARE, WORD, or the published
code's WORD slices; CT only, volumes in HU. --config=configs/NAME.py, followed by
--config.data.FIELD=VALUE, sets window, size and so on; by default it is the config for the layout
of SOURCE. DEST gets manifest.json, plain .npy arrays and contact_sheet.png. Rerun the same command
to resume after an interruption. SOURCE/patients.csv (columns name and patient), if it exists, gives
the cases' patients.

Exit code 3: the data set has errors. Exit code 4: all cases are checked or packed, but files or
folders among them were left out because of their names.
"""

import importlib
import json
import pathlib
import shlex
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from usam_jax.data import validation
from usam_jax.data.case import Cases
from usam_jax.data.contact_sheet import save_contact_sheet
from usam_jax.data.datasets import registry
from usam_jax.data.packed.format import Packed, open_packed, packed_cases
from usam_jax.data.packed.prepare import packing_settings, prepare, require_own
from usam_jax.data.validation import Finding
from usam_jax.io.cohort import describe_count
from usam_jax.utils import cli, console
from usam_jax.utils.errors import DataError, SomeFailed, UsageError

CHECK = flags.DEFINE_bool("check", False, "Read every case and report its faults.")
JSON = flags.DEFINE_bool("json", False, "Print the findings as JSON.")
SHEET = flags.DEFINE_string("sheet", None, "File (.png) for the contact sheet of a check.")


def default_config(source: pathlib.Path) -> ConfigDict:
    """The config for the layout of a source, with the settings of the packing if it is packed."""
    kind = registry.detect_kind(source)
    settings = open_packed(source).manifest["settings"] if kind == "packed" else {"kind": kind}
    config = config_of(settings["kind"])
    config.data.kind = kind
    if kind == "packed":
        config.update_from_flattened_dict(settings_as_fields(settings))
    return config


def config_of(kind: str) -> ConfigDict:
    """The config for data sets of a kind, with that kind."""
    name = registry.get_spec(kind).config_name
    return importlib.import_module(f"configs.{name}").get_config()


def settings_as_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a packed data set, by field of a config."""
    level, width = settings["window_hu"]
    return {
        "model.image_size": settings["image_size"],
        "data.classes": tuple(settings["classes"]),
        "data.intensity": settings["intensity"],
        "data.clahe_limit": settings["clahe_limit"],
        "data.window_level": level,
        "data.window_width": width,
    }


def training_command(packed: Packed) -> str:
    """The command that trains with a packed data set, with all fields that are not defaults."""
    settings = packed.manifest["settings"]
    name, config = registry.get_spec(settings["kind"]).config_name, config_of(settings["kind"])
    fields = {"data.kind": "packed", "data.root": str(packed.folder)}
    for field, value in settings_as_fields(settings).items():
        section, option = field.split(".")
        default = config[section][option]
        if default not in (value, ()):  # the default () takes the classes from the data set
            fields[field] = value
    given = [shlex.quote(f"--config.{field}={value}") for field, value in fields.items()]
    return f"python -m usam_jax.main --config={name} {' '.join(given)}"


def print_check(findings: list[Finding], cases: Cases, root: pathlib.Path) -> None:
    """Print all findings. Raises DataError if there are errors among them."""
    summary = validation.summarise(findings, cases)
    if JSON.value:
        print(json.dumps(summary, indent=1))
    elif findings:
        print(validation.describe(findings))
    counts = f"{summary['num_errors']} errors, {summary['num_warnings']} warnings"
    if summary["num_errors"]:
        raise DataError(f"{root} cannot be used for training: {counts}")
    numbers = ", ".join(f"{x} {n}" for x, n in summary["num_cases"].items())
    console.info(f"{root} can be used for training: {counts}; cases: {numbers}")


def print_packed(packed: Packed) -> None:
    """Print a table of what was packed, and the command that trains with it."""
    table = Table()
    for name in ("split", "cases", "patients", "slices", "with foreground"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split in packed.manifest["splits"]:
        found, slices = packed.cases(split), packed.slices(split)
        patients = {x["patient"] for x in found}
        known = "unknown" if None in patients else str(len(patients))
        foreground = sum(x["foreground"] for x in slices)
        table.add_row(split, str(len(found)), known, str(len(slices)), str(foreground))
    console = Console(stderr=JSON.value, highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(table)
    console.print(f"packed: {packed.folder}, with contact_sheet.png")
    console.print(f"train: {training_command(packed)}")


def sheet_settings(config: ConfigDict) -> dict[str, Any]:
    """The packing settings for the contact sheet, which leave packed slices as they are."""
    if config.data.kind != "packed":
        return packing_settings(config.data)
    return open_packed(pathlib.Path(config.data.root)).manifest["settings"] | {"clahe_limit": 0.0}


def check_arguments(arguments: list[str]) -> None:
    """Raise UsageError for invalid arguments and combinations of flags."""
    if not 1 <= len(arguments) <= 2 or not (CHECK.value or len(arguments) == 2):
        raise UsageError(f"found the arguments {arguments}, expected SOURCE DEST\n{__doc__}")
    if (JSON.value or SHEET.value) and not CHECK.value:
        raise UsageError("--json and --sheet: expected --check with them")
    sheet = pathlib.Path(SHEET.value or "sheet.png")
    if sheet.suffix != ".png" or not sheet.parent.is_dir():
        raise UsageError(f"--sheet={sheet}: expected FILE.png in a folder that exists")


def main(config: ConfigDict | None, arguments: list[str]) -> None:
    """Check and pack as the command line says."""
    check_arguments(arguments)
    source, *rest = map(pathlib.Path, arguments)
    try:
        config = config or default_config(source)
        config.data.root = str(source)
        registry.name_classes(config)
    except DataError as error:
        if CHECK.value:
            print_check([validation.unusable(str(source), error)], {}, source)
        raise
    if rest and config.data.kind == "packed":
        raise UsageError(f"{source} is packed already; give its source, or leave out {rest[0]}")
    settings = sheet_settings(config)
    if rest:
        require_own(rest[0])
    if CHECK.value:
        findings, cases = validation.check(config.data, config.eval.select_on)
        if SHEET.value and any(x.num_slices for found in cases.values() for x in found):
            save_contact_sheet(pathlib.Path(SHEET.value), cases, settings)
            console.info(f"contact sheet: {SHEET.value}")
        print_check(findings, cases, source)
    if rest:
        packed = prepare(config.data, rest[0])
        cases = packed_cases(packed.folder)
        if CHECK.value:
            validation.compare_checksums(cases)
        save_contact_sheet(
            packed.folder / "contact_sheet.png", cases, settings | {"clahe_limit": 0.0}
        )
        print_packed(packed)
    if left_out := registry.find_left_out(config.data):
        raise SomeFailed(describe_count(left_out))


def run_command_line() -> int:
    """Run the program with the arguments of the command line and return its exit code."""
    return cli.run(main, sys.argv, needs_config=False)


if __name__ == "__main__":
    sys.exit(run_command_line())
