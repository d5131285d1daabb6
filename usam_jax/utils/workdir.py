"""Every path that a run writes.

The table in docs/reference/workdir.md describes the files.
"""

import dataclasses
import pathlib

SUMMARY, PER_CASE = "summary.json", "per_case.csv"


@dataclasses.dataclass(frozen=True)
class EvaluationFolder:
    """The results of one evaluation: eval/SPLIT_PROMPTS of a run, or where tools.score writes."""

    path: pathlib.Path

    @property
    def summary(self) -> pathlib.Path:
        return self.path / SUMMARY

    @property
    def per_case(self) -> pathlib.Path:
        return self.path / PER_CASE

    @property
    def report(self) -> pathlib.Path:
        return self.path / "report.html"

    @property
    def predictions(self) -> pathlib.Path:
        return self.path / "predictions.png"

    @property
    def boxes(self) -> pathlib.Path:
        return self.path / "boxes.png"

    @property
    def sizes(self) -> pathlib.Path:
        return self.path / "sizes.png"

    @property
    def clicks(self) -> pathlib.Path:
        return self.path / "clicks.png"

    @property
    def corrections(self) -> pathlib.Path:
        return self.path / "corrections.png"

    @property
    def noise(self) -> pathlib.Path:
        return self.path / "noise.png"

    @property
    def cases(self) -> pathlib.Path:
        return self.path / "cases"

    def case(self, name: str) -> pathlib.Path:
        return self.cases / f"{name}.png"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of one run."""

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def data(self) -> pathlib.Path:
        return self.path / "data.json"

    @property
    def run(self) -> pathlib.Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def metrics_csv(self) -> pathlib.Path:
        return self.path / "metrics.csv"

    @property
    def progress(self) -> pathlib.Path:
        return self.path / "progress.png"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def damaged(self) -> pathlib.Path:
        return self.path / "damaged"

    @property
    def evaluations(self) -> pathlib.Path:
        return self.path / "eval"

    @property
    def seeds(self) -> pathlib.Path:
        return self.path / "seeds.json"

    def checkpoint(self, step: int) -> pathlib.Path:
        return self.checkpoints / str(step)

    def evaluation(self, split: str, prompts: str) -> EvaluationFolder:
        return EvaluationFolder(self.evaluations / f"{split}_{prompts}")

    def summaries(self) -> list[pathlib.Path]:
        """The summaries of all evaluations so far, in the order of their names."""
        return sorted(self.evaluations.glob(f"*/{SUMMARY}"))
