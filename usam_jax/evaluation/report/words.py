"""Sentences about prompts that the tables on the terminal and the report share."""

from typing import Any

from usam_jax.utils.formatting import percent

IGNORED = 0.01  # share of the foreground pixels: prompts that change less decide nothing


def describe_sensitivity(sensitivity: dict[str, Any] | None) -> str:
    """Return one line on what the prompts change, a warning if that is next to nothing."""
    if sensitivity is None:
        return "what the prompts change was not measured: config.eval.prompts has no 'none'"
    changed, dice = sensitivity["changed"], sensitivity["dice"]
    points = "not defined" if dice is None else f"{100 * dice:+.2f} points"
    facts = (
        f"the prompts ({sensitivity['prompts']}) change {percent(changed)} % of the foreground pixels; "
        f"mean Dice {points}"
    )
    if not sensitivity["trained"]:
        return f"the model was trained without prompts; {facts}"
    return f"warning: the model ignores its prompts: {facts}" if changed < IGNORED else facts


def sensitivity_lines(summary: dict[str, Any]) -> list[str]:
    """Return the line of `describe_sensitivity`, or none if no prompts were evaluated."""
    if summary["automatic"] and summary["sensitivity"] is None:
        return []
    return [describe_sensitivity(summary["sensitivity"])]


def shown_counts(clicks: dict[str, Any]) -> list[int]:
    """Return the numbers of clicks whose Dice is shown."""
    return [n for n in (0, 1, 3, 5, 10, 20) if n < len(clicks["dice"])]


def clicks_by_class(clicks: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a table: Dice of each class after clicks, and obeyed clicks."""
    counts = shown_counts(clicks)
    columns = [
        "class",
        *(str(n) if n else "automatic" for n in counts),
        "clicks on it",
        "obeyed (%)",
    ]
    rows = []
    for name, found in clicks["classes"].items():
        dice = [percent(found["dice"][n]) for n in counts]
        rows.append([name, *dice, str(found["num_clicks"]), percent(found["adherence"], 1)])
    return columns, rows


def title_of_clicks(clicks: dict[str, Any]) -> str:
    """Return the title of the table of `clicks_by_class`."""
    return (
        f"Dice (%) after clicks, pooled over {clicks['num_slices']} slices with foreground; a click counts "
        "for the true class of its pixel, and is obeyed if that class is predicted there"
    )


def describe_clicks(clicks: dict[str, Any]) -> str:
    """Return the results of the robot user in sentences."""
    dice = ", ".join(f"{n}: {percent(clicks['dice'][n], 1)} %" for n in shown_counts(clicks))
    numbers = ", ".join(
        f"{target} %: {x['mean']:.1f} ({percent(x['failed'], 1)} % of the slices never)"
        for target, x in clicks["number_of_clicks"].items()
    )
    return (
        f"A robot user clicks in the middle of the largest error of each of {clicks['num_slices']} "
        f"slices with foreground. Mean Dice of the slices by number of clicks: {dice}. Mean clicks "
        f"to reach a Dice of {numbers}; at most {clicks['max_clicks']}. The clicked pixel obeys in "
        f"{percent(clicks['adherence'], 1)} % of {clicks['num_clicks']} clicks; clicks on false "
        f"positives clear at least half of them in {percent(clicks['cleared_by_negative'], 1)} %."
    )
