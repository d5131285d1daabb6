"""A cache of encoded slices, bounded by bytes."""

from typing import Any


class SliceCache:
    """Values by slice number, at most `limit` bytes of them.

    The slices farthest from `center`, the displayed slice, are dropped first.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.center, self.bytes = limit, 0, 0
        self.values: dict[int, tuple[Any, int]] = {}

    def get(self, number: int) -> Any:
        """Return the value of a slice, or None."""
        return self.values.get(number, (None, 0))[0]

    def put(self, number: int, value: Any, size: int) -> None:
        """Keep a value of `size` bytes, and drop others until all fit. The new one always stays."""
        self.drop(number)
        self.values[number] = value, size
        self.bytes += size
        while self.bytes > self.limit and len(self.values) > 1:
            others = (x for x in self.values if x != number)
            self.drop(max(others, key=lambda x: abs(x - self.center)))

    def drop(self, number: int) -> None:
        """Forget a slice."""
        self.bytes -= self.values.pop(number, (None, 0))[1]

    def clear(self) -> None:
        """Forget all slices."""
        self.values.clear()
        self.bytes = 0
