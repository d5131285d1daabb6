"""UCTransNet: its sizes, invalid fields, attention over channels, and reconstruction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config
from flax import linen as nn

from usam_jax import models
from usam_jax.models import uctransnet
from usam_jax.models.common.layers import BatchNorm
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


def test_reconstruct_equals_upsampling_first():
    tokens = jax.random.normal(jax.random.key(0), (3, 4, 2))
    module = uctransnet.Reconstruct(2, jnp.float32)
    variables = module.init(jax.random.key(1), tokens, (2, 2), False)
    found, changed = module.apply(variables, tokens, (2, 2), True, mutable=["batch_stats"])
    kernel, bias = (variables["params"]["conv"][x] for x in ("kernel", "bias"))
    x = uctransnet.upsample_nearest(tokens.reshape(3, 2, 2, 2), 2) @ kernel[0, 0] + bias
    norm = {name: tree["norm"] for name, tree in variables.items()}
    expected, stats = BatchNorm().apply(norm, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, nn.relu(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        changed["batch_stats"]["norm"]["var"], stats["batch_stats"]["var"], rtol=1e-5
    )
