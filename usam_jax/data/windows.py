"""Windows of consecutive slices of one case, by the rows of a packed split."""

import dataclasses

import numpy as np

from usam_jax.data.packed.format import Packed
from usam_jax.utils.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of `size` slices of a split.

    `first` and `count` int[n] are the first row and the number of slices of the case of each row.
    """

    size: int
    first: np.ndarray
    count: np.ndarray

    def around(self, row: int) -> np.ndarray:
        """Rows int[size] with `row` in the middle.

        Beyond the ends of a case, its first and last slice repeat.
        """
        reach = self.size // 2
        rows = np.arange(row - reach, row - reach + self.size)
        return np.clip(rows, self.first[row], self.first[row] + self.count[row] - 1)

    def after(self, start: int, case: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows int[size] from `start` on, and which are in the case of the row `case`, bool[size].

        Beyond the end of a case shorter than the window, its last slice repeats.
        """
        rows, end = np.arange(start, start + self.size), self.first[case] + self.count[case]
        return np.minimum(rows, end - 1), rows < end

    def starts(self, case: int) -> list[int]:
        """First rows of the windows that cover the case of the row `case`, in order.

        The windows do not overlap, except that the last one ends at the case's last slice.
        """
        first, count = int(self.first[case]), int(self.count[case])
        last = first + max(count - self.size, 0)
        return [min(first + i, last) for i in range(0, count, self.size)]

    def cover(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows int[m size] that hold the slices `rows`, and which slices count, bool[m size].

        `rows` are ascending. Each of `rows` counts once, in the first window that holds it, so that the rows that count
        are `rows` in order. Windows without any of them are left out.
        """
        found, counted = [], []
        for case in np.unique(self.first[rows]).tolist():
            wanted = rows[self.first[rows] == case]
            end = case
            for start in self.starts(case):
                window, inside = self.after(start, case)
                new = inside & (window >= end) & np.isin(window, wanted)
                end = start + self.size
                if new.any():
                    found.append(window)
                    counted.append(new)
        return np.stack(found), np.stack(counted)

    def drawn(self, start: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A window near that of `start`, shifted by up to half its size within the case.

        Returns rows int[size] and which are in the case, bool[size].
        """
        reach, first = self.size // 2, int(self.first[start])
        shift = int(rng.integers(-reach, reach + 1))
        last = first + max(int(self.count[start]) - self.size, 0)
        return self.after(int(np.clip(start + shift, first, last)), start)


def make_windows(packed: Packed, split: str, size: int) -> Windows:
    """The windows of a packed split."""
    cases = packed.cases(split)
    counts = np.array([x["num_slices"] for x in cases], int)
    first = np.array([x["row"] for x in cases], int)
    return Windows(size, first.repeat(counts), counts.repeat(counts))


def require_cases(packed: Packed, size: int) -> None:
    """Raise UsageError if a window has more slices than any case."""
    counts = [x["num_slices"] for split in packed.manifest["splits"].values() for x in split]
    if size > max(counts):
        raise UsageError(
            f"config.model.slices: got {size}, expected at most {max(counts)}, the slices of the "
            f"largest case of {packed.folder}"
        )


def training_rows(packed: Packed, split: str, rows: np.ndarray, size: int, dims: int) -> np.ndarray:
    """The rows that training draws from: `rows`, or for `dims` 3 the starts of their windows.

    The windows are those that cover the cases and hold at least one of `rows`. Raises UsageError if
    a window has more slices than any case.
    """
    require_cases(packed, size)
    if dims == 2:
        return rows
    windows = make_windows(packed, split, size)
    return np.array(
        [
            start
            for case in np.unique(windows.first[rows]).tolist()
            for start in windows.starts(case)
            if np.isin(windows.after(start, case)[0], rows).any()
        ],
        int,
    )
