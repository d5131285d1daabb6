"""Optimizers compared with torch's, parameter groups and checks of `config.optimizer`."""

import adamw_problem as problem
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import care
from usam_jax.models.common.spec import ModelSpec, group_of, split_params
from usam_jax.models.usam import SPEC
from usam_jax.training import optimizer
from usam_jax.utils.errors import UsageError


def our_steps() -> dict[str, np.ndarray]:
    params = {part: {"w": jnp.asarray(problem.start(part))} for part in problem.RATES}
    factor_fn = optimizer.polynomial_decay(problem.TOTAL, problem.WARMUP)
    tx = optimizer.make_optimizer(problem.config(), factor_fn, SPEC)
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for step in range(problem.NUM_STEPS):
        grads = {part: {"w": jnp.asarray(problem.gradient(part, step))} for part in params}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return {part: np.stack([x[part]["w"] for x in found]) for part in params}


def assert_close(found, expected):
    for part, steps in expected.items():
        # Steps are 1e-4 and 1e-3, and float32 rounds parameters of order 1 by 1e-7 per step.
        np.testing.assert_allclose(found[part], steps, rtol=0, atol=3e-6)


@pytest.mark.optimised
def test_adamw_steps_equal_stored_torch_steps():
    found = our_steps()
    with np.load(problem.GOLDEN) as expected:
        assert_close(found, {part: expected[part] for part in problem.RATES})


def make_spec(*groups):
    return ModelSpec(config=ConfigDict, build=lambda _: None, param_groups=groups)


def test_group_of_names_uncovered_parameter():
    spec = make_spec(("encoder/.*", "encoder"))
    assert group_of("encoder/kernel", spec) == "encoder"
    with pytest.raises(UsageError, match="the parameter head/kernel: got no learning-rate group"):
        group_of("head/kernel", spec)


def test_group_of_takes_the_first_match():
    spec = make_spec(("encoder/norm/.*", None), ("encoder/.*", "encoder"), (".*", "rest"))
    paths = ("encoder/norm/scale", "encoder/kernel", "head/kernel")
    assert [group_of(x, spec) for x in paths] == [None, "encoder", "rest"]
    trainable, frozen = split_params({"encoder": {"norm": {"scale": 1}, "kernel": 2}}, spec)
    assert (trainable, frozen) == ({"encoder": {"kernel": 2}}, {"encoder": {"norm": {"scale": 1}}})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "learning_rates",
            ConfigDict({"backbone": 1e-4}),
            r"got \['backbone'\], expected one rate",
        ),
        ("name", "adam", "config.optimizer.name: got 'adam', expected one of adamw, sgd"),
        ("momentum", 1.0, "config.optimizer.momentum"),
        ("clip_norm", -1.0, "config.optimizer.clip_norm: got -1.0, expected 0 or more"),
    ],
)
def test_optimizer_check_names_invalid_field(field, value, message):
    config = care.get_config().optimizer
    optimizer.check(config, SPEC)
    config[field] = value
    with pytest.raises(UsageError, match=message):
        optimizer.check(config, SPEC)


def test_sgd_steps_equal_torchs_formula():
    config = ConfigDict(
        {
            "name": "sgd",
            "learning_rates": {"all": 0.1},
            "weight_decay": 0.01,
            "momentum": 0.9,
            "nesterov": True,
            "clip_norm": 0.75,
        }
    )
    tx = optimizer.make_optimizer(config, lambda step: 1.0, make_spec((".*", "all")))
    params, buffer = {"w": jnp.float32(2.0)}, 0.0
    state, expected = tx.init(params), 2.0
    for gradient in (1.0, -0.5, 0.25):
        updates, state = tx.update({"w": jnp.float32(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        clipped = gradient * min(1, 0.75 / (abs(gradient) + 1e-6))
        decayed = clipped + 0.01 * expected  # the formula in torch.optim.SGD's documentation
        buffer = 0.9 * buffer + decayed
        expected -= 0.1 * (decayed + 0.9 * buffer)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-6)


@pytest.mark.parity
def test_adamw_stored_steps_equal_torch():
    expected = problem.torch_steps()
    assert_close(our_steps(), expected)
    with np.load(problem.GOLDEN) as kept:
        for part, steps in expected.items():
            np.testing.assert_allclose(kept[part], steps, rtol=0, atol=1e-7)
