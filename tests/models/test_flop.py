"""The counted work of networks."""

import jax
import jax.numpy as jnp
import pytest

from usam_jax import models
from usam_jax.models.common.flop import forward_flop, jaxpr_flop


# Of products and convolutions of the published networks at 224x224, in GFLOP.
@pytest.mark.parametrize(
    ("name", "published"), [("unet", 100.1), ("vnet", 21.4), ("swin_unet", 12.16), ("usam", 50.3)]
)
def test_flop_equals_that_of_the_published_network(name, published):
    assert forward_flop(models.make_config(name)) / 1e9 == pytest.approx(published, rel=6e-3)


def test_flop_counts_loops_and_the_default_platform():
    x = jnp.ones((3, 4))

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ jnp.ones((4, 4)), None), x, length=5)[0]

    def platforms(x):
        return jax.lax.platform_dependent(x, cpu=loop, default=lambda x: x @ jnp.ones((4, 4)))

    product = 2 * 3 * 4 * 4
    assert jaxpr_flop(jax.make_jaxpr(loop)(x).jaxpr) == 5 * product
    assert jaxpr_flop(jax.make_jaxpr(platforms)(x).jaxpr) == product
    with pytest.raises(ValueError, match="a while loop: got products in it"):
        jaxpr_flop(
            jax.make_jaxpr(
                lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ jnp.eye(4), x)
            )(x).jaxpr
        )


def test_flop_of_a_transposed_convolution_leaves_out_zeros():
    def up(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "VALID")

    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((1, 8, 8, 3), (2, 2, 3, 5))]
    found = jaxpr_flop(jax.make_jaxpr(up)(*shapes).jaxpr)
    assert found == pytest.approx(2 * 8 * 8 * 3 * 2 * 2 * 5)
