"""The optimiser beside torch's AdamW, parameter groups and schedule."""

import adamw_problem as problem
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from usam_jax.training import optimizer


def our_steps() -> dict[str, np.ndarray]:
    params = {part: jnp.asarray(problem.start(part)) for part in problem.RATES}
    params[optimizer.FROZEN] = jnp.asarray(problem.start(optimizer.FROZEN))
    factor_fn = optimizer.polynomial_decay(problem.TOTAL, problem.WARMUP)
    tx = optimizer.make_optimizer(problem.config(), factor_fn, params)
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for step in range(problem.NUM_STEPS):
        grads = {part: jnp.asarray(problem.gradient(part, step)) for part in params}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return {part: np.stack([x[part] for x in found]) for part in params}


def assert_close(found, expected):
    for part, steps in expected.items():
        # Steps are of 1e-4 and 1e-3; float32 rounds parameters of order 1 at 1e-7 a step.
        np.testing.assert_allclose(found[part], steps, rtol=0, atol=3e-6)


def test_thirty_steps_equal_torchs():
    found = our_steps()
    with np.load(problem.GOLDEN) as expected:
        assert_close(found, {part: expected[part] for part in problem.RATES})
    frozen = problem.start(optimizer.FROZEN)
    assert (found[optimizer.FROZEN] == frozen).all()


@pytest.mark.parity
def test_the_kept_steps_are_those_of_torch():
    expected = problem.torch_steps()
    assert_close(our_steps(), expected)
    with np.load(problem.GOLDEN) as kept:
        for part, steps in expected.items():
            np.testing.assert_allclose(kept[part], steps, rtol=0, atol=1e-7)
