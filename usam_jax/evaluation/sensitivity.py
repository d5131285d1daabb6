"""What prompts change, compared with the prediction without any."""

from typing import Any

import numpy as np

from usam_jax.data.prompt_modes import PromptMode


def count_changes(predicted: np.ndarray, automatic: np.ndarray) -> np.ndarray:
    """Return the numbers of pixels that differ, and that are foreground in either, int64[2]."""
    differ, foreground = predicted != automatic, (predicted > 0) | (automatic > 0)
    return np.array([differ.sum(), foreground.sum()], np.int64)


def prompt_sensitivity(
    modes: list[PromptMode],
    pooled: dict[str, dict[str, Any]],
    changed: dict[str, np.ndarray],
    trained_kind: str,
) -> dict[str, Any] | None:
    """Return what the first prompts of `modes` change compared with none, or None if unknown.

    `prompts` describes them, `changed` is the share of the foreground pixels whose class changes,
    `dice` the difference of the mean Dice, and `trained` whether the model was trained with prompts.
    """
    prompted = [mode for mode in modes if mode.name != "none"]
    if not prompted or not changed:
        return None
    name = prompted[0].name
    pixels, foreground = changed[name].tolist()
    with_prompts, without = pooled[name]["dice"]["mean"], pooled["none"]["dice"]["mean"]
    defined = with_prompts is not None and without is not None
    return {
        "prompts": prompted[0].describe(),
        "trained": trained_kind != "none",
        "changed": pixels / foreground if foreground else 0.0,
        "dice": with_prompts - without if defined else None,
    }
