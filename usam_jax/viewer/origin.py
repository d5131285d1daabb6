"""Where the labels of slices come from, in words."""

from collections.abc import Mapping

from usam_jax.viewer.slice_state import NO_PROMPTS, SliceState


def is_touched(state: SliceState) -> bool:
    """Whether a person took part in the labels of a slice."""
    return bool(state.predicted or state.propagated or state.edits)


def describe_origin(slices: Mapping[int, SliceState], origin: str) -> str:
    """Return in words which slices a person has prompted or edited, after a mask from a file.

    If there are none, return "none" and the `origin` of all slices.
    """
    found = {
        "prompted": [i for i, x in sorted(slices.items()) if x.prompts != NO_PROMPTS],
        "propagated to": [i for i, x in sorted(slices.items()) if x.propagated],
        "edited by hand": [i for i, x in sorted(slices.items()) if x.edits],
    }
    words = [f"{name} slices {numbers}" for name, numbers in found.items() if numbers]
    if origin.startswith("from "):
        words.insert(0, origin)
    return "; ".join(words) or f"none ({origin})"
