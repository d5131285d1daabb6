"""Formatting of metric values, units, intervals and p-values."""

import pytest

from usam_jax.utils import formatting
from usam_jax.utils.formatting import MISSING

SUMMARY = {"distance_unit": "mm", "volume_unit": "ml"}


@pytest.mark.parametrize(
    ("metric", "value", "text", "unit"),
    [
        ("Dice", 0.66666, "66.67", "%"),
        ("NSD", 1.0, "100.00", "%"),
        ("HD95", 12.345, "12.35", "mm"),
        ("reference_volume", 3.0, "3.00", "ml"),
    ],
)
def test_format_value_is_in_the_unit_of_the_metric(metric, value, text, unit):
    assert formatting.format_value(value, metric) == text
    assert formatting.unit_of(metric, SUMMARY) == unit
    assert formatting.format_value(None, metric) == MISSING


def test_format_interval_and_mean_sd():
    assert formatting.format_interval([-0.01, 0.5], "Dice", digits=1) == "[-1.0, 50.0]"
    assert formatting.format_interval(None, "Dice") == MISSING
    assert formatting.format_mean_sd({"mean": 0.5, "sd": 0.1}, "Dice") == "50.00 ± 10.00"
    assert formatting.format_mean_sd({"mean": 4.0, "sd": None}, "HD95") == "4.00"


def test_percent_marks_missing_values_as_asked():
    assert formatting.percent(0.125, digits=1) == "12.5"
    assert (formatting.percent(None), formatting.percent(None, missing="-")) == ("absent", "-")


def test_format_p_shows_small_values_as_bound():
    shown = [formatting.format_p(p) for p in (None, 0.0002, 0.04)]
    assert shown == [MISSING, "<0.001", "0.040"]
