"""Checks of `config.eval`: every unsupported value is named with its field."""

import math
import re

import pytest
from conftest import phantom_config

from usam_jax.evaluation.checks import check
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import make_mesh


def test_check_accepts_supported_values():
    config = phantom_config()
    for tolerances in ((0.5,), (1, 2.5)):
        for policy in ("worst", "skip"):
            config.eval.nsd_tolerance_mm, config.eval.empty_policy = tolerances, policy
            check(config, make_mesh(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 3),  # not a multiple of the two devices
        ("every_epochs", 0),
        ("select_on", "train"),
        ("split", "validation"),
        ("prompts", ("clicks",)),
        ("prompt_jitter_px", (0.0,)),
        ("nsd_tolerance_mm", (0.0,)),
        ("nsd_tolerance_mm", (math.inf,)),
        ("nsd_tolerance_mm", ("2",)),
        ("nsd_tolerance_mm", ()),
        ("nsd_tolerance_mm", (1.0, 2.0, 3.0)),
        ("empty_policy", "best"),
    ],
)
def test_check_names_the_field_and_the_value(field, value):
    config = phantom_config()
    with config.ignore_type():
        config.eval[field] = value
    got = value[0] if field == "prompts" else value
    with pytest.raises(UsageError, match=rf"config\.eval\.{field}: .*{re.escape(repr(got))}"):
        check(config, make_mesh(2))


def test_check_rejects_prompts_for_network_without_prompts():
    config = phantom_config()
    config.model.name, config.prompts.kind = "unet", "none"
    config.eval.prompts = ("none",)
    check(config, make_mesh(2))
    config.eval.prompts = ("none", "box")
    with pytest.raises(UsageError, match=r"config\.eval\.prompts: .* unet takes no prompts"):
        check(config, make_mesh(2))
