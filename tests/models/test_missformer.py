"""MISSFormer: its sizes, invalid fields, and the tokens of its bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config

from usam_jax import models
from usam_jax.models import missformer
from usam_jax.utils.errors import UsageError


@pytest.mark.parametrize(("num_classes", "expected"), [(3, 35_452_355), (17, 35_453_265)])
def test_missformer_has_the_published_parameters(num_classes, expected):
    config = model_config(name="missformer", num_classes=num_classes)
    params = models.variable_shapes(config)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 240, "a positive multiple of 32"),
        ("widths", (64, 128, 320), "4 positive even numbers"),
        ("widths", (1, 2, 2, 2), "4 positive even numbers"),
        ("widths", (64, 128, 300, 512), "multiples of the first, 64"),
        ("depth", 0, "1 or more"),
        ("bridge_depth", -1, "0 or more"),
    ],
)
def test_missformer_names_invalid_field(field, value, expected):
    config = model_config(name="missformer")
    config[field] = value
    with pytest.raises(UsageError, match=rf"config.model.{field}: got .*, expected {expected}"):
        models.make_model(config)


def test_split_maps_inverts_join_maps():
    maps = [jnp.arange(2.0 * s * s * d).reshape(2, s, s, d) for s, d in ((4, 2), (2, 6))]
    tokens = missformer.join_maps(maps, 2)
    np.testing.assert_array_equal(tokens[0, 16 + 3 * 1 + 2], maps[1][0, 0, 1, 4:])
    back = missformer.split_maps(tokens, [x.shape for x in maps])
    jax.tree.map(np.testing.assert_array_equal, back, maps)
