"""Prompt modes compared in one evaluation, padded to one shape to share a compiled program."""

import dataclasses
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from usam_jax.data.prompts import PADDING, AddPrompts, eval_kind, make_add_prompts, replaced
from usam_jax.utils.errors import UsageError

NAMES = re.compile(r"none|box|points(?P<count>[1-9]\d*)(?P<box>_box)?")
EXPECTED = "none, box, pointsN or pointsN_box (N for each class)"

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PromptMode:
    """A prompt mode: the prompts of `add_prompts`, moved by `jitter_px` pixels in evaluation."""

    add_prompts: AddPrompts
    jitter_px: float = 0.0

    @property
    def name(self) -> str:
        """A folder's name: `points3`, `points3_rowcol`, `points3_box`, `box`, `none`."""
        prompts = self.add_prompts
        name = eval_kind(prompts.kind)
        if "points" in name:
            negative = f"_negative{prompts.negative_points}" if prompts.negative_points else ""
            name = name.replace("points", f"points{prompts.points_per_class}{negative}")
            name += "_rowcol" if prompts.order == "rowcol" else ""
        return f"{name}_moved{self.jitter_px:g}" if self.jitter_px else name

    def describe(self) -> str:
        """The kind and the source of the prompts, in words, for reports."""
        prompts = self.add_prompts
        count = prompts.points_per_class
        points = f"{count} point{'s' * (count > 1)} per class"
        if prompts.order == "rowcol":
            points += " as (row, column)"
        if prompts.negative_points:
            points += f" and {prompts.negative_points} of the background"
        words = {
            "none": "none (automatic)",
            "points": f"{points} from the ground truth",
            "box": "box from the ground truth",
            "points_box": f"{points} and box from the ground truth",
        }
        moved = f", moved by {self.jitter_px:g} pixels" if self.jitter_px else ""
        return words[eval_kind(prompts.kind)] + moved

    @property
    def num_points(self) -> int:
        """The number of points per slice, padding included."""
        prompts = self.add_prompts
        if "points" not in eval_kind(prompts.kind):
            return 0
        return (prompts.num_classes - 1) * prompts.points_per_class + prompts.negative_points

    def __call__(self, label: np.ndarray, row: int, num_points: int) -> Arrays:
        """The prompts of a slice, padded to `num_points`.

        They are points_xy float32[p 2], point_labels int32[p], boxes_xyxy float32[4], and
        prompts_given bool[p+1], which is False for padding and has the box last. The jitter depends
        on the slice's row alone.
        """
        found = self.add_prompts({"label": label}, None)
        missing = num_points - self.num_points
        points = found.get("points_xy", np.zeros((0, 2), np.float32))
        box = found.get("boxes_xyxy", np.zeros(4, np.float32))
        if self.jitter_px:
            rng = np.random.default_rng(row)
            points = move(points, self.jitter_px, label.shape[0], rng)
            corners = move(box.reshape(2, 2), self.jitter_px, label.shape[0], rng)
            box = np.sort(corners, axis=0).reshape(4)
        labels = found.get("point_labels", np.zeros(0, np.int32))
        given = np.arange(num_points + 1) < self.num_points
        given[-1] = "boxes_xyxy" in found
        if self.jitter_px and self.add_prompts.with_classes:
            # As a user's: on whole pixels, and the last of several on one.
            points, real = np.rint(points), np.flatnonzero(labels != PADDING)
            given[: len(points)] = False
            given[real[~replaced(points[real])]] = True
        arrays = {
            "points_xy": np.pad(points, ((0, missing), (0, 0))),
            "point_labels": np.pad(labels, (0, missing), constant_values=PADDING),
            "boxes_xyxy": box,
            "prompts_given": given,
        }
        if self.add_prompts.with_classes:
            classes = found.get("point_classes", np.zeros(0, np.int32))
            arrays["point_classes"] = np.pad(classes, (0, missing))
        return arrays


def move(xy: np.ndarray, pixels: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Move each point float32[n 2] by `pixels` in a random direction, clipped to the slice."""
    angle = rng.uniform(0, 2 * np.pi, len(xy))
    offsets = pixels * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.clip(xy + offsets, 0, size - 1).astype(np.float32)


def main_mode(config: ConfigDict) -> PromptMode:
    """The mode of `config.prompts`. Raises UsageError for invalid fields."""
    return PromptMode(make_add_prompts(config))


def none_mode(config: ConfigDict) -> PromptMode:
    """The mode without prompts."""
    return PromptMode(dataclasses.replace(make_add_prompts(config), kind="none"))


def other_modes(config: ConfigDict) -> list[PromptMode]:
    """The further modes of `config.eval.prompts`. Raises UsageError for an unknown name."""
    main = main_mode(config)
    modes: dict[str, PromptMode] = {}
    for name in config.eval.prompts:
        found = NAMES.fullmatch(str(name))
        if not found:
            raise UsageError(f"config.eval.prompts: got {name!r}, expected {EXPECTED}")
        kind, count = name, 1
        if found["count"]:
            kind, count = f"points{found['box'] or ''}", int(found["count"])
        mode = PromptMode(
            dataclasses.replace(
                main.add_prompts, kind=kind, points_per_class=count, negative_points=0
            )
        )
        modes[mode.name] = mode
    modes.pop(main.name, None)
    return list(modes.values())


def jittered_modes(config: ConfigDict) -> list[PromptMode]:
    """The main mode with each jitter of `config.eval.prompt_jitter_px`, if it has prompts.

    Raises UsageError for a jitter that is not above 0.
    """
    main = main_mode(config)
    if not all(isinstance(x, int | float) and x > 0 for x in config.eval.prompt_jitter_px):
        raise UsageError(
            f"config.eval.prompt_jitter_px: got {config.eval.prompt_jitter_px}, expected pixels "
            "above 0"
        )
    if main.name == "none":
        return []
    return [dataclasses.replace(main, jitter_px=float(x)) for x in config.eval.prompt_jitter_px]


def trained_with(saved: dict[str, Any]) -> str:
    """The prompts of training, in words, from a run's saved config."""
    prompts = saved["prompts"]
    mode = main_mode(ConfigDict({"prompts": prompts, "model": saved["model"]}))
    if prompts["kind"] == "mixed":
        return f"mixed: none, a box, both, or {mode.describe()}"
    if prompts["kind"] == "interactive":
        return f"{prompts['rounds']} simulated clicks, before them nothing, a box, or {mode.describe()}"
    return mode.describe()
