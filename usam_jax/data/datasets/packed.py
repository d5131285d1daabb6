"""A data set that is packed already, usable without its source."""

import pathlib

from ml_collections import ConfigDict

from usam_jax.data.case import Cases
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.packed.format import MANIFEST, open_packed, packed_cases


def list_cases(data: ConfigDict) -> Cases:
    """The cases as packed."""
    return packed_cases(pathlib.Path(data.root))


def read_classes(root: pathlib.Path) -> tuple[str, ...]:
    """The names of the classes, by label."""
    return tuple(open_packed(root).manifest["settings"]["classes"])


SPEC = DatasetSpec(
    list_cases, layout=MANIFEST, sign=MANIFEST, detect_rank=0, read_classes=read_classes
)
