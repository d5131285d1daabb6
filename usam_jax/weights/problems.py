"""All problems of a weights file, collected for one error."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax.utils.errors import WeightsError, list_some

StateDict = Mapping[str, np.ndarray]

MAX_LISTED = 10  # tensors of each kind of problem
NOT_FINITE = "with NaN or infinite values"


def non_finite(arrays: Iterable[tuple[str, Any]]) -> list[str]:
    """A line for each array that holds NaN or infinite values as float32."""
    lines = []
    for name, array in arrays:
        with np.errstate(over="ignore"):
            wrong = np.asarray(array, np.float32)
        if count := int(np.count_nonzero(~np.isfinite(wrong))):
            lines.append(f"{name}: {count} of {wrong.size}")
    return lines


def require_finite(arrays: Iterable[tuple[str, Any]], where: str) -> None:
    """Raise WeightsError, which begins with `where`, if an array is not finite."""
    if found := non_finite(arrays):
        raise WeightsError(
            f"{where}: got {len(found)} arrays {NOT_FINITE}, expected none:\n"
            f"{list_some(found, MAX_LISTED)}\nUse a checkpoint from before the training failed."
        )


class Problems:
    """The tensors of a file that are missing, unknown, misshapen or not finite."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.unknown: list[str] = []
        self.misshapen: list[str] = []
        self.not_finite: list[str] = []
        self.shapes: list[
            tuple[tuple[int, ...], tuple[int, ...]]
        ] = []  # got and expected, if wrong

    def check(
        self,
        names: Sequence[str],
        shape: tuple[int, ...],
        tensors: StateDict,
    ) -> list[np.ndarray]:
        """Return these tensors, or an empty list if one of them cannot be used.

        Each should have the shape `shape`.
        """
        new = [name for name in names if name not in self.used]
        self.used.update(names)
        there = [name for name in names if name in tensors]
        wrong = [name for name in there if tensors[name].shape != shape]
        self.shapes += [(tensors[name].shape, shape) for name in wrong]
        faulty = non_finite((name, tensors[name]) for name in there)
        self.missing += [name for name in new if name not in tensors]
        self.misshapen += [f"{name}: got {tensors[name].shape}, expected {shape}" for name in wrong]
        self.not_finite += faulty
        usable = len(there) == len(names) and not wrong and not faulty
        return [tensors[name] for name in names] if usable else []

    def raise_any(self, source: str, config: ConfigDict) -> None:
        """Raise WeightsError, which names `source` and `config`, if there is any problem."""
        # Names of few parts, such as `pos_embed`, say most about the model's size.
        misshapen = sorted(self.misshapen, key=lambda x: len(re.split(r"[./]", x.split(":")[0])))
        kinds = {"missing": self.missing, "unknown": self.unknown, "misshapen": misshapen}
        lines = [f"{len(v)} {kind}:\n{list_some(v, MAX_LISTED)}" for kind, v in kinds.items() if v]
        if lines:
            fields = ", ".join(f"{name} = {value}" for name, value in config.items())
            lines = [
                f"these weights are not those of {source} with config.model: {fields}",
                *lines,
                *describe_channels(self.shapes, config),
                "Check config.model against the file.",
            ]
        if found := self.not_finite:
            lines += [
                f"{len(found)} {NOT_FINITE}:\n{list_some(found, MAX_LISTED)}",
                "Use a checkpoint from before the training failed, or get the file again.",
            ]
        if lines:
            raise WeightsError("\n".join(lines))


def describe_channels(
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]], config: ConfigDict
) -> list[str]:
    """Return a line if a first layer has other input channels than `config.model.slices`.

    `shapes` are pairs of found and expected shapes.
    """
    slices = config.get("slices", 1)
    for got, expected in shapes if slices > 1 else ():
        differing = [(a, b) for a, b in zip(got, expected, strict=False) if a != b]
        if len(got) == len(expected) and differing in ([(1, slices)], [(3, slices)]):
            channels = differing[0][0]
            fitting = "1" if channels == 1 else "1 or 3"
            taken = f"{channels} channel{'s' * (channels > 1)}"
            expected_words = f"expected {fitting}: the first layer of these weights takes {taken}."
            return [f"config.model.slices: got {slices}, {expected_words}"]
    return []
