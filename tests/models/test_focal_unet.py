"""Focal-UNet: its sizes, invalid fields and rates of drop path."""

import jax
import numpy as np
import pytest
from conftest import model_config
from flax import linen as nn

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

    with nn.intercept_methods(note):
        models.variable_shapes(config)
    encoder = [rates[f"layers_{i}/blocks_{j}"] for i in range(4) for j in range(4)]
    np.testing.assert_allclose(encoder, 0.2 * np.arange(16) / 15)
    decoder = [rates[f"layers_up_{i}/blocks_0"] for i in (1, 2, 3)]
    np.testing.assert_allclose(decoder, [0.2 * 2 / 15, 0.2 / 15, 0], atol=1e-12)
