"""Focal-UNet: its sizes, invalid fields and drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config

from usam_jax import models
from usam_jax.models import focal_unet
from usam_jax.utils.errors import UsageError


# The published ones without the 192 of a norm that is not used.
@pytest.mark.parametrize(("num_classes", "expected"), [(3, 44_225_644), (17, 44_291_500)])
def test_focal_unet_has_the_published_parameters(num_classes, expected):
    config = model_config(name="focal_unet", num_classes=num_classes)
    params = models.variable_shapes(config)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 240, "a positive multiple of 32"),
        ("width", 0, "1 or more"),
        ("depths", (2,), "two or more stages"),
        ("depths", (2, 0), "two or more stages"),
        ("drop_path", 1.0, "0 to below 1"),
    ],
)
def test_focal_unet_names_invalid_field(field, value, expected):
    config = model_config(name="focal_unet")
    config[field] = value
    with pytest.raises(UsageError, match=rf"config.model.{field}: got .*, expected {expected}"):
        models.make_model(config)


def test_drop_rates_of_focal_unet_are_the_published_ones():
    config = model_config(name="focal_unet", width=2, image_size=32)
    rates = {}

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, focal_unet.Block):
            rates["/".join(context.module.path)] = context.module.drop_rate
        return next_call(*args, **kwargs)

    with focal_unet.nn.intercept_methods(note):
        models.variable_shapes(config)
    encoder = [rates[f"layers_{i}/blocks_{j}"] for i in range(4) for j in range(4)]
    np.testing.assert_allclose(encoder, 0.2 * np.arange(16) / 15)
    decoder = [rates[f"layers_up_{i}/blocks_0"] for i in (1, 2, 3)]
    np.testing.assert_allclose(decoder, [0.2 * 2 / 15, 0.2 / 15, 0], atol=1e-12)


def test_focal_block_drops_whole_branches_of_samples():
    block = focal_unet.Block(0.5, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (16, 4, 4, 8))
    variables = block.init(jax.random.key(1), x, False)
    found = block.apply(variables, x, True, rngs={"dropout": jax.random.key(2)})
    dropped = (found == x).all((1, 2, 3))
    assert 0 < dropped.sum() < 16
