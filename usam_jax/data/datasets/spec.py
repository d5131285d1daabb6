"""What a layout of data sets defines about itself."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from usam_jax.data.case import Cases


def no_settings(_data: ConfigDict) -> dict[str, Any]:
    """Settings of a layout whose packed bytes depend on no fields of its own."""
    return {}


def nothing_left_out(_data: ConfigDict) -> dict[pathlib.Path, str]:
    """What a layout leaves out whose folders hold nothing but its cases."""
    return {}


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A layout of data sets. All paths are relative to the data set's folder."""

    # The cases of `config.data` by split: train, val (if the data set has one), test. Raises
    # DataError for files and UsageError for fields that cannot be used.
    list_cases: Callable[[ConfigDict], Cases]
    # Files and folders among the cases that are not read, such as those with another ending, with
    # the reasons.
    find_left_out: Callable[[ConfigDict], dict[pathlib.Path, str]] = nothing_left_out
    # The content of the folder, for messages, and where to get the data.
    layout: str = ""
    hint: str = ""
    # The name of the config for this layout: configs/NAME.py.
    config_name: str = ""
    # A path that every such data set has.
    required: str = ""
    # The path by which `detect_kind` recognises a folder; never if empty. If a folder has the signs
    # of several layouts, the one with the lowest `detect_rank` counts.
    sign: str = ""
    detect_rank: int = 100
    # Reads the names of the classes from the folder, if the data set has them.
    read_classes: Callable[[pathlib.Path], tuple[str, ...]] | None = None
    # Fields of the layout itself that decide the packed bytes. Raises UsageError for invalid ones.
    packing_settings: Callable[[ConfigDict], dict[str, Any]] = no_settings
    # Whether slices are stored with the patient's front at the left edge.
    transposed: bool = False
    # Whether the files give the patient's sides, which the contact sheet then marks.
    oriented: bool = False
