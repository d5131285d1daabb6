"""Work spread over the cores of the host."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 16  # a large volume takes a gigabyte while it is read

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: list[T]) -> Iterator[tuple[T, R]]:
    """Call `function` in threads, a few items ahead, and yield items and results in order."""
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(items), 4 * workers):
                some = items[start : start + 4 * workers]
                yield from zip(some, pool.map(function, some), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)
