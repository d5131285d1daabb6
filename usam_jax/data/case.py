"""What every kind of data set is turned into: cases, each read in one go."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from usam_jax.data.volumes import Geometry

# Grey float32[n h w], nominally in [0, 1], and class indices uint8[n h w].
Slices = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A slice of CARE, or a volume elsewhere; `load_fn` reads its slices.

    `patient` is None where the data set does not tell whose slices these are. `stamp` (JSON)
    changes when the source does.
    """

    name: str
    patient: str | None
    num_slices: int
    stamp: list[Any]
    load_fn: Callable[[], Slices]
    geometry: Geometry | None = None

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a pixel; where they are not known only their ratio, 1, matters."""
        return self.geometry.spacing_mm[1:] if self.geometry else (1.0, 1.0)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key under which 9 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
