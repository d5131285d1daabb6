"""R2U-Net, ResUNet++, MultiResUNet and V-Net: sizes, invalid fields and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config

from usam_jax import models
from usam_jax.models import multires_unet, r2unet, vnet
from usam_jax.models.common.layers import HE_NORMAL
from usam_jax.utils.errors import UsageError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("r2unet", 39_092_433),
        ("resunet_pp", 14_483_092),
        ("multires_unet", 7_252_186),
        ("vnet", 9_373_493),
        ("vnet_prelu", 9_377_126),
        ("vnet3d", 45_660_661),
    ],
)
def test_parameter_count_is_the_published_one_for_word(name, expected):
    params = models.variable_shapes(model_config(name=name, num_classes=17))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("name", "field", "value", "expected"),
    [
        ("r2unet", "width", 0, "1 or more"),
        ("r2unet", "steps", -1, "0 or more"),
        ("resunet_pp", "width", 0, "1 or more"),
        ("resunet_pp", "image_size", 36, "a positive multiple of 8"),
        ("multires_unet", "width", 3, "4 or more"),
        ("vnet", "width", 0, "1 or more"),
        ("vnet_prelu", "dropout", 1.0, "0 to below 1"),
    ],
)
def test_conv_network_names_invalid_field(name, field, value, expected):
    config = model_config(name=name)
    config[field] = value
    with pytest.raises(UsageError, match=rf"config.model.{field}: got .*, expected {expected}"):
        models.make_model(config)


def test_block_widths_are_the_published_ones():
    found = [tuple(multires_unet.block_widths(32 * 2**i).values()) for i in range(5)]
    expected = [(8, 17, 26), (17, 35, 53), (35, 71, 106), (71, 142, 213), (142, 284, 427)]
    assert found == expected
    assert min(multires_unet.block_widths(4).values()) == 1


def test_recurrent_unit_updates_statistics_at_each_step():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    def variance_after(steps: int) -> np.ndarray:
        unit = r2unet.RecurrentUnit(3, steps, jnp.float32)
        variables = unit.init(jax.random.key(1), x, True)
        stats = jax.tree.map(lambda v: v + 1e6, variables["batch_stats"])
        _, changed = unit.apply(
            {**variables, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return changed["batch_stats"]["unit"]["norm"]["var"]

    for steps in range(3):
        np.testing.assert_allclose(variance_after(steps), 1e6 * 0.9 ** (steps + 1), rtol=1e-4)


def test_vnet_drops_whole_channels_of_a_skip():
    up = vnet.Up(0, 32, (0.0, 0.5), False, jnp.float32)
    x, skip = jnp.ones((8, 2, 2, 32)), jnp.ones((8, 4, 4, 16))
    variables = up.init(jax.random.key(0), x, skip, False)
    rngs = {"dropout": jax.random.key(1)}
    found, _ = up.apply(variables, x, skip, True, rngs=rngs, mutable=["batch_stats"])
    found = np.asarray(found[..., 16:])  # the sum of the skip with itself: 2, or 4 after dropout
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1, :1], found.shape))
    assert set(np.unique(found)) == {0.0, 4.0}
    np.testing.assert_array_equal(up.apply(variables, x, skip, False)[..., 16:], 2.0)


def test_he_normal_is_torchs_kaiming_normal():
    kernel = HE_NORMAL(jax.random.key(0), (3, 3, 64, 64))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated
