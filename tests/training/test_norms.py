"""Norms of gradients are the same by array and by stack."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usam_jax import models
from usam_jax.training import norms
from usam_jax.training.norms import BY_ARRAY, STACKED, norms_for

SPEC = models.get("usam")
SHAPES = {"a": (64,), "b": (64,), "c": (300, 300), "d": (4, 16), "e": (4, 16), "f": (64,), "g": ()}


@pytest.fixture(scope="module")
def grads():
    rng = np.random.default_rng(0)
    groups = ("backbone", "image_encoder", "mask_decoder")
    return {x: {y: rng.normal(size=z).astype("f") for y, z in SHAPES.items()} for x in groups}


def both(form, grads):
    groups = form.of_groups(grads, SPEC)
    return groups, form.of_all(grads, groups)


def test_stacked_norms_equal_those_by_array(grads):
    expected, found = both(BY_ARRAY, grads), both(STACKED, grads)
    assert expected[0].keys() == found[0].keys() and len(found[0]) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6), expected, found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_makes_stacked_norms_not_finite(value, grads):
    wrong = {**grads["backbone"], "f": np.full(64, value, np.float32)}
    assert not np.isfinite(both(STACKED, {**grads, "backbone": wrong})[1])


def test_stack_small_keeps_every_array():
    shapes = [(3,)] * (norms.MAX_STACK + 1) + [(norms.SMALL,)] * 2 + [(2, 2)]
    found = norms.stack_small([jnp.zeros(x) for x in shapes])
    big = (norms.SMALL,)
    assert [x.shape for x in found] == [(norms.MAX_STACK, 3), (3,), big, big, (2, 2)]


@pytest.mark.parametrize(
    ("platform", "fsdp", "form"),
    [("cuda", False, STACKED), ("cuda", True, BY_ARRAY), ("cpu", False, BY_ARRAY)],
)
def test_norms_for_stacks_on_gpus_alone(platform, fsdp, form):
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    assert norms_for(mesh, fsdp) is form
