"""Format metric values, units, intervals and p-values for tables, plots, logs and reports.

Shares (Dice, IoU, NSD, sensitivity) are stored from 0 to 1 and shown in per cent; distances and
volumes are shown in the unit that a summary names.
"""

from typing import Any

MISSING = "\N{EN DASH}"  # stands for a value that is not defined
DISTANCES = ("HD95",)
VOLUMES = ("volume", "reference_volume")


def scale_of(metric: str) -> float:
    """Factor from a stored value to the shown one: 100 for shares, 1 for distances and volumes."""
    return 1.0 if metric in (*DISTANCES, *VOLUMES) else 100.0


def unit_of(metric: str, summary: dict[str, Any]) -> str:
    """Unit of the shown values: `distance_unit` or `volume_unit` of the summary, else `%`."""
    if metric in DISTANCES:
        return summary["distance_unit"]
    return summary["volume_unit"] if metric in VOLUMES else "%"


def format_number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed number of decimals.

    None becomes `MISSING`.
    """
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 2, missing: str = "absent") -> str:
    """A share from 0 to 1 in per cent, without the sign.

    None becomes `missing`.
    """
    return missing if share is None else format_number(100 * share, digits)


def format_value(value: float | None, metric: str, digits: int = 2) -> str:
    """A stored metric value in the unit of `unit_of`, without the unit."""
    return format_number(None if value is None else scale_of(metric) * value, digits)


def format_interval(interval: list[float] | None, metric: str, digits: int = 2) -> str:
    """`[low, high]` in the unit of `unit_of`.

    None becomes `MISSING`.
    """
    if interval is None:
        return MISSING
    return f"[{', '.join(format_value(x, metric, digits) for x in interval)}]"


def format_mean_sd(statistics: dict[str, Any], metric: str) -> str:
    """`mean ± sd` of statistics with these two keys.

    The mean alone if `sd` is None.
    """
    mean, sd = (format_value(statistics[x], metric) for x in ("mean", "sd"))
    return mean if statistics["sd"] is None else f"{mean} ± {sd}"


def format_p(p: float | None) -> str:
    """A p-value with three decimals, `<0.001` below that.

    None becomes `MISSING`.
    """
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"
