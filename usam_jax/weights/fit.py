"""How the names in a weights file fit the maps of a network, with or without a prefix.

Wrappers put a prefix before the names of all tensors: `module.` (DistributedDataParallel),
`_orig_mod.` (torch.compile), `model.` (Lightning), `sam.` (micro-sam), or several of them.
"""

import collections
import dataclasses

import numpy as np
from ml_collections import ConfigDict

from usam_jax.models import variable_shapes
from usam_jax.utils.errors import WeightsError
from usam_jax.weights.name_map import NameMap, leaves_of, rename, wanted_names
from usam_jax.weights.problems import StateDict

MAX_PARTS = 4  # of a prefix
MIN_FOUND = 0.2  # share of the wanted names; a file of another variant has more of them


@dataclasses.dataclass(frozen=True)
class Fit:
    """The map that fits a file best, and the tensors of the file by name without `prefix`."""

    name_map: NameMap
    prefix: str
    tensors: dict[str, np.ndarray]

    def __str__(self) -> str:
        without = f" without the prefix {self.prefix}" if self.prefix else ""
        return f"{self.name_map.source}{without}"


def shared_prefixes(names: list[str]) -> list[str]:
    """Return "" and the dotted prefixes that more than half of the names have, shortest first."""
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        parts = name.split(".")[:-1][:MAX_PARTS]
        counts.update(".".join(parts[: i + 1]) + "." for i in range(len(parts)))
    shared = [prefix for prefix, count in counts.items() if 2 * count > len(names)]
    return ["", *sorted(shared, key=len)]


def find_fit(state_dict: StateDict, maps: tuple[NameMap, ...], config: ConfigDict) -> Fit:
    """Return the fit with the most names found minus names missing, without a prefix on ties.

    Names without the prefix of the others stay as they are. Raises WeightsError if hardly any name
    is found.
    """
    shapes = variable_shapes(config)
    wanted = [wanted_names(leaves_of(shapes, x), x) for x in maps]
    fits = [
        (Fit(name_map, prefix, strip(state_dict, prefix)), expected)
        for prefix in shared_prefixes(list(state_dict))
        for name_map, expected in zip(maps, wanted, strict=True)
    ]
    best, expected = max(fits, key=lambda x: score(*x))
    if len(file_names(best) & expected) < MIN_FOUND * len(expected):
        raise WeightsError(describe_strange(list(state_dict), maps, wanted))
    return best


def strip(state_dict: StateDict, prefix: str) -> dict[str, np.ndarray]:
    """Return the tensors by name, without the prefix where a name has it."""
    return {name.removeprefix(prefix): x for name, x in state_dict.items()}


def file_names(fit: Fit) -> set[str]:
    """The names that the map sees."""
    return {rename(name, fit.name_map.file_names) for name in fit.tensors}


def score(fit: Fit, wanted: set[str]) -> int:
    """The number of wanted names found minus those missing."""
    names = file_names(fit)
    return len(names & wanted) - len(wanted - names)


def describe_strange(names: list[str], maps: tuple[NameMap, ...], wanted: list[set[str]]) -> str:
    """An error for a file with hardly any known name, which names the prefix of all its tensors."""
    prefix = [x for x in shared_prefixes(names) if all(y.startswith(x) for y in names)][-1]
    prefixed = f" with the prefix {prefix}" if prefix else ""
    expected = "; ".join(
        f"{', '.join(sorted(found)[:2])}, ... ({name_map.source})"
        for name_map, found in zip(maps, wanted, strict=True)
    )
    return (
        f"got {len(names)} tensors{prefixed}, such as {', '.join(names[:3])}, expected names such "
        f"as {expected}. No prefix makes them fit: rename the tensors, or give another file."
    )
