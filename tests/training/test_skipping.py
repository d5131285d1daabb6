"""A step that is not finite leaves the state as it is, by a branch or by a selection."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usam_jax.training import skipping


def update(state: dict, change: jax.Array) -> dict:
    return {"w": state["w"] + change, "count": state["count"] + 1, "fixed": state["fixed"]}


@pytest.mark.parametrize("number", [2.0, np.nan, np.inf])
def test_selection_returns_what_the_branch_returns(number):
    state = {"w": jnp.ones(3), "count": jnp.zeros((), jnp.int32), "fixed": jnp.arange(2)}
    change = jnp.full(3, number)
    good = jnp.isfinite(change).all()
    branch, selection = (
        jax.jit(lambda *x, form=form: form(x[0], update, *x[1:]))(good, state, change)
        for form in (skipping.by_branch, skipping.by_selection)
    )
    jax.tree.map(np.testing.assert_array_equal, branch, selection)
    assert selection["count"] == int(good)


@pytest.mark.parametrize(
    ("platform", "form"),
    [("cpu", "by_branch"), ("tpu", "by_branch"), ("gpu", "by_selection"), ("cuda", "by_selection")],
)
def test_update_if_selects_on_gpus_alone(platform, form):
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([device]))
    assert skipping.update_if(mesh) is getattr(skipping, form)
