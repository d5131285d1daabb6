"""UCTransNet: its sizes and invalid fields."""

import jax
import pytest
from conftest import model_config

from usam_jax import models
from usam_jax.utils.errors import UsageError


@pytest.mark.parametrize(("num_classes", "expected"), [(3, 66_430_787), (17, 66_431_697)])
def test_uctransnet_has_the_published_parameters(num_classes, expected):
    config = model_config(name="uctransnet", num_classes=num_classes)
    params = models.variable_shapes(config)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected
    assert sum(x.size for x in jax.tree.leaves(params["mtc"])) == 52_374_144


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 24, "a positive multiple of 16"),
        ("width", 0, "1 or more"),
        ("depth", 0, "1 or more"),
        ("num_heads", 0, "1 or more"),
        ("dropout", 1.0, "0 to below 1"),
    ],
)
def test_uctransnet_names_invalid_field(field, value, expected):
    config = model_config(name="uctransnet")
    config[field] = value
    with pytest.raises(UsageError, match=rf"config.model.{field}: got .*, expected {expected}"):
        models.make_model(config)
