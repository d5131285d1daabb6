"""Metrics of a run on disk: JSON lines, CSV and TensorBoard."""

import json
import pathlib
from typing import Any, Self

from usam_jax.utils.files import write_csv, write_text
from usam_jax.utils.workdir import Workdir


def read_rows(metrics: pathlib.Path) -> list[dict[str, Any]]:
    """Return the metrics in `metrics.jsonl`, one dict per step with its `step`."""
    rows: dict[int, dict[str, Any]] = {}
    for line in metrics.read_text().splitlines():
        values = json.loads(line)
        rows.setdefault(values["step"], {}).update(values)
    return list(rows.values())


class MetricWriter:
    """Context manager that writes the metrics of each step to `metrics.jsonl` and TensorBoard.

    Rows after `first_step` are dropped, because a resumed run writes them again. Only the main
    process has an `active` writer; the others write nothing.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, active: bool = True) -> None:
        self.workdir, self.active = Workdir(workdir), active
        self.path = self.workdir.metrics
        if not active:
            return
        if self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= first_step]
            write_text(self.path, "".join(kept))
        # Not above: it imports torch if that is installed, for 2 seconds of each command.
        from tensorboardX import SummaryWriter

        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(self.workdir.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append the values of a step, None for an undefined value."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        for name, value in values.items():
            if value is not None:
                self.board.add_scalar(name, value, step)

    def read(self) -> list[dict[str, Any]]:
        """Return all metrics so far, one dict per step with its `step`."""
        return read_rows(self.path)

    def write_csv(self, rows: list[dict[str, Any]]) -> None:
        """Write rows from `read` to `metrics.csv`, one row per step."""
        columns = dict.fromkeys(name for row in rows for name in row)
        table = [[row.get(x, "") for x in columns] for row in rows]
        write_csv(self.workdir.metrics_csv, columns, table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.active:
            self.file.close()
            self.board.close()
