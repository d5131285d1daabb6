"""The table of networks, and the operations that it states."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import zoo
from usam_jax.models import ops
from usam_jax.models.common import registry
from usam_jax.models.common.flop import count_flop


def test_page_of_networks_is_up_to_date():
    text = zoo.PAGE.read_text()
    gflop = zoo.read_gflop(text)  # as stated, since counting traces each network once more
    assert gflop.keys() == set(registry.names()), "run: python -m benchmarks zoo"
    assert zoo.fill(text, gflop) == text, "run: python -m benchmarks zoo"


def test_page_states_the_gflop_of_unet():
    stated = zoo.read_gflop(zoo.PAGE.read_text())["unet"]
    # The published code takes 100.1, with the grey image in three equal channels.
    assert stated == round(zoo.count_gflop("unet"), 1) == 100.0


def convolve(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, padding="SAME", dimension_numbers=numbers, **options
    )


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (jnp.matmul, [(2, 3), (3, 5)], 2 * 2 * 3 * 5),
        (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [(7, 2, 3), (7, 3, 5)], 7 * 2 * 2 * 3 * 5),
        (lambda x, k: convolve(x, k, window_strides=(2, 2)), [(1, 8, 8, 3), (3, 3, 3, 4)], 2 * 16 * 4 * 27),
        (
            lambda x, k: convolve(x, k, window_strides=(1, 1), feature_group_count=6),
            [(1, 8, 8, 6), (3, 3, 1, 6)],
            2 * 64 * 6 * 9,
        ),
        (jax.jit(ops.matmul), [(2, 3), (3, 5)], 2 * 2 * 3 * 5),
        (lambda x: jax.lax.fori_loop(0, 4, lambda _, y: y @ x, x), [(3, 3)], 4 * 2 * 27),
    ],
    ids=["matmul", "batched", "strided", "depthwise", "per platform", "loop"],
)  # fmt: skip
def test_count_flop_counts_a_multiply_add_as_two(function, shapes, expected):
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes]
    assert count_flop(function, *shapes) == expected


def test_count_flop_of_gradient_is_that_of_two_products():
    x, y = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((2, 3), (3, 5)))
    grad = jax.grad(lambda x, y: (x @ y).sum(), argnums=(0, 1))
    assert count_flop(grad, x, y) == 3 * 2 * 2 * 3 * 5
