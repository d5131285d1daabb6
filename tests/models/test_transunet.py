"""TransUNet: its sizes, invalid fields, standardised kernels and upsampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config

from usam_jax import models
from usam_jax.models import transunet
from usam_jax.models.common.upsample import end_point_matrix, upsample
from usam_jax.utils.errors import UsageError


@pytest.mark.parametrize(("num_classes", "expected"), [(3, 105_276_211), (17, 105_278_241)])
def test_parameter_count_of_transunet_is_the_published_one(num_classes, expected):
    config = model_config(name="transunet", num_classes=num_classes)
    params = models.variable_shapes(config)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 100, "a positive multiple of 16"),
        ("root_width", 48, "a positive multiple of 32"),
        ("units", (3, 4), "3 numbers, 1 or more each"),
        ("decoder_widths", (8, 8, 8, 8, 0), "5 numbers, 1 or more each"),
        ("width", 100, "a positive multiple of num_heads, 12"),
        ("num_heads", 0, "1 or more"),
        ("depth", 0, "1 or more"),
        ("dropout", 1.0, "0 to below 1"),
    ],
)
def test_transunet_names_invalid_field(field, value, expected):
    config = model_config(name="transunet")
    config[field] = value
    with pytest.raises(UsageError, match=rf"config.model.{field}: got .*, expected {expected}"):
        models.make_model(config)


def test_grey_std_conv_equals_that_of_three_equal_channels():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    grey = transunet.StdConv(4, 3, jnp.float32, stride=2, grey=True)
    variables = grey.init(jax.random.key(1), x)
    rgb = transunet.StdConv(4, 3, jnp.float32, stride=2)
    expected = rgb.apply(variables, jnp.repeat(x, 3, axis=-1))
    np.testing.assert_allclose(grey.apply(variables, x), expected, atol=1e-5)


def test_upsample_keeps_corners_and_lines():
    rows = np.arange(5.0)
    x = jnp.asarray(rows[:, None] + 10 * rows, jnp.float32)[None, :, :, None]
    line = np.linspace(0, 4, 10)
    np.testing.assert_allclose(
        upsample(x)[0, :, :, 0], line[:, None] + 10 * line, rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(end_point_matrix(1, 1), [[1]])
