"""Swin-Unet: its sizes, invalid fields, drop path and relative positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config

from usam_jax import models
from usam_jax.models import swin_unet
from usam_jax.utils.errors import UsageError


@pytest.mark.parametrize(("num_classes", "expected"), [(3, 27_168_324), (17, 27_169_668)])
def test_parameter_count_of_swin_unet_is_the_published_one(num_classes, expected):
    config = model_config(name="swin_unet", num_classes=num_classes)
    params = models.variable_shapes(config)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 256, "a positive multiple of 224"),
        ("width", 100, "a positive multiple of head_dim, 32"),
        ("head_dim", 0, "1 or more"),
        ("depths", (2,), "two or more stages"),
        ("depths", (2, 0), "two or more stages"),
        ("window", 1, "2 or more"),
        ("drop_path", 1.0, "0 to below 1"),
    ],
)
def test_swin_unet_names_invalid_field(field, value, expected):
    config = model_config(name="swin_unet")
    config[field] = value
    with pytest.raises(UsageError, match=rf"config.model.{field}: got .*, expected {expected}"):
        models.make_model(config)


def test_relative_index_is_the_published_row():
    index = swin_unet.relative_index(7)
    query, key = 2 * 7 + 5, 6 * 7 + 1
    assert index[query, key] == (2 - 6 + 6) * 13 + (5 - 1 + 6)
    assert (index.min(), index.max()) == (0, 168)


def test_shift_mask_separates_opposite_sides():
    mask = swin_unet.shift_mask(8, 8, 4, 2)
    assert mask.shape == (4, 16, 16)
    np.testing.assert_array_equal(mask[0], 0)  # only neighbours
    # The last window has the corners of the map, 2x2 tokens each.
    seen = (mask[3] == 0).sum(-1)
    np.testing.assert_array_equal(seen, 4)


def test_drop_path_drops_whole_branches_of_samples():
    block = swin_unet.Block(4, 2, True, 0.5, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (16, 4, 4, 8))
    variables = block.init(jax.random.key(1), x, False)
    key = {"dropout": jax.random.key(2)}
    kept = block.apply(variables, x, False)
    found = block.apply(variables, x, True, rngs=key)
    np.testing.assert_array_equal(found, block.apply(variables, x, True, rngs=key))
    dropped = (found == x).all((1, 2, 3))
    assert 0 < dropped.sum() < 16
    assert not np.allclose(found[~dropped], kept[~dropped])
