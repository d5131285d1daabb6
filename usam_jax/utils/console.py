"""What people watch: messages, and progress with a time estimate.

On a terminal, progress is one line that moves. Elsewhere it is a plain line now and then.
"""

import codecs
import collections
import contextlib
import io
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_LINE_EVERY_S = 10.0
SPEED_OVER_S = 60.0  # short enough to forget compilation and pauses soon

console = Console(stderr=True, highlight=False, emoji=False)


def keep_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what a stream cannot: bytes of a file name as they are, other characters escaped."""
    for name in ("surrogateescape", "backslashreplace"):
        with contextlib.suppress(UnicodeError):
            return codecs.lookup_error(name)(error)
    raise error


def accept_all_names() -> None:
    """Let stdout print every valid name of a file, whatever its encoding and the stream's."""
    codecs.register_error("usam_jax.keep_bytes", keep_bytes)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="usam_jax.keep_bytes")


def info(text: str) -> None:
    """Print a line, above the progress line if there is one."""
    console.print(text, markup=False, soft_wrap=True)


def format_time(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"


class Progress:
    """Progress through `total` units, of which an earlier run did `done`.

    A context manager.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.note = done, ""
        self.last_line = time.monotonic()
        self.recent = collections.deque([(self.last_line, done)])
        self.bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(what, total=total, completed=done, note="", rate="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def advance(self, count: int = 1, note: str = "", per_step: int = 1) -> None:
        """Count `count` more units and show `note` at the end of the line.

        If a unit holds several slices (`per_step`), the rate is in slices per second.
        """
        self.done += count
        now = time.monotonic()
        self.recent.append((now, self.done))
        while len(self.recent) > 2 and now - self.recent[1][0] > SPEED_OVER_S:
            self.recent.popleft()
        since, done_then = self.recent[0]
        speed = (self.done - done_then) / max(now - since, 1e-9)
        unit = self.unit if per_step == 1 else "slices"
        rate = f"{speed * per_step:.1f} {unit}/s"
        self.note = note or self.note
        self.bar.update(self.task, completed=self.done, rate=rate, note=self.note)
        if console.is_terminal:
            return
        if now - self.last_line >= PLAIN_LINE_EVERY_S or self.done == self.total:
            self.last_line = now
            left = format_time((self.total - self.done) / max(speed, 1e-9))
            info(
                f"{self.what}: {self.done}/{self.total}  {rate}  {left} left  {self.note}".rstrip()
            )

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()
