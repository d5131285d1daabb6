"""What is wrong with the tensors of a checkpoint, all in one error."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from usam_jax.utils.errors import WeightsError

StateDict = Mapping[str, np.ndarray]


class Wanted(Protocol):
    """An array of the model and the tensors that it is made of."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def torch_shape(self) -> tuple[int, ...]: ...


class Problems:
    """All problems of a checkpoint, collected so that one error lists them."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.unknown: list[str] = []
        self.misshapen: list[str] = []

    def check(self, leaf: Wanted, tensors: StateDict) -> list[np.ndarray]:
        """Return the leaf's tensors, or an empty list if one is missing or misshapen."""
        new = [name for name in leaf.names if name not in self.used]
        self.used.update(leaf.names)
        absent = [name for name in leaf.names if name not in tensors]
        wrong = [
            name
            for name in leaf.names
            if name in tensors and tensors[name].shape != leaf.torch_shape
        ]
        self.missing += [name for name in absent if name in new]
        self.misshapen += [
            f"{name}: got {tensors[name].shape}, expected {leaf.torch_shape}" for name in wrong
        ]
        return [] if absent or wrong else [tensors[name] for name in leaf.names]

    def raise_any(self, source: str, config: ConfigDict) -> None:
        """Raise WeightsError, which names `source` and `config`, if there is any problem."""
        kinds = {"missing": self.missing, "unknown": self.unknown, "misshapen": self.misshapen}
        lines = ["\n  ".join([f"{len(v)} {kind}:", *v]) for kind, v in kinds.items() if v]
        if lines:
            fields = ", ".join(f"{name} = {value}" for name, value in config.items())
            raise WeightsError(
                f"these weights are not those of {source} with config.model: {fields}\n"
                + "\n".join(lines)
                + "\nCheck config.model against the file."
            )
