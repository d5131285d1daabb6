"""The work of the model and the limits of the machine, of which results are shares."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# FLOP of ViT-B for a slice of 224x224; a multiply-add counts as two.
PART_FLOP = {"convolutional encoder": 7.0e9, "image encoder": 35.1e9, "mask decoder": 8.2e9}
FORWARD_FLOP = sum(PART_FLOP.values())
STEP_FLOP = 3 * FORWARD_FLOP  # the backward pass takes two forward passes
PRODUCT = {"cpu": 3072, "gpu": 8192}  # rows and columns of the matrices
ARRAY_BYTES = 1 << 30
LIMIT_S = 2.0  # duration of a product that is not timed in turn with a run
CALLS = {"cpu": 1, "gpu": 20}  # in a row, so that launching a call does not count


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process for one call, little disturbed by other processes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def make_product_limit(dtype: str) -> Callable[[float], float]:
    """Make a function that repeats a large matrix product and returns its FLOP/s.

    Call it for as long as the run that it limits, so that other load affects both alike. It has
    JAX's default precision, which for float32 on a GPU is TensorFloat-32.
    """
    size = PRODUCT[jax.default_backend()]
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    jax.block_until_ready(multiply(x))
    calls = CALLS[jax.default_backend()]

    def measure(duration: float) -> float:
        took, rounds = 0.0, 0
        while took < duration:
            took += seconds(lambda: [multiply(x) for _ in range(calls)])
            rounds += 1
        return rounds * calls * 2 * size**3 / took

    return measure


@functools.cache
def product_limit(dtype: str) -> Callable[[float], float]:
    """`make_product_limit`, compiled once for each dtype."""
    return make_product_limit(dtype)


def measure_bandwidth() -> float:
    """Bytes per second read and written by updating an array in place."""
    x = jnp.zeros(ARRAY_BYTES // 4, jnp.float32)
    change = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(change(x))
    calls = CALLS[jax.default_backend()]

    def run() -> object:
        nonlocal x
        for _ in range(calls):
            x = change(x)
        return x

    return max(calls * 2 * ARRAY_BYTES / seconds(run) for _ in range(3))
