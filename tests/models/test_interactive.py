"""The interactive extension of U-SAM and S."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config, phantom_config
from flax import linen as nn

from tools.click_ablation import VARIANTS, cut
from usam_jax.models import Prompts, init_variables, make_model
from usam_jax.models.common.layers import SHARED, BatchNorm
from usam_jax.models.sam import interactive
from usam_jax.utils.errors import UsageError

SIZE = 32


def small_config(name: str, **changes):
    phantom_config()  # registers the variant
    return model_config(name=name, variant="smallest", image_size=SIZE, **changes)


def click(x: float, y: float, label: int) -> Prompts:
    return Prompts(
        points_xy=jnp.array([[[x, y]]]),
        point_labels=jnp.ones((1, 1), jnp.int32),
        point_classes=jnp.array([[label]]),
    )


@pytest.fixture(scope="module", params=["usam", "sam_s"])
def network(request):
    config = small_config(request.param, interactive=True)
    return config, make_model(config), init_variables(config, jax.random.key(0))


def test_untrained_extension_changes_nothing(network):
    config, model, variables = network
    plain = make_model(small_config(config.name))
    rest = dict(variables["params"])
    assert rest.pop("extension")
    image = jax.random.uniform(jax.random.key(1), (1, SIZE, SIZE))
    prompts = click(9.0, 5.0, 2)
    expected = plain.apply(
        {**variables, "params": rest},
        image,
        Prompts(points_xy=prompts.points_xy, point_labels=prompts.point_labels),
    )
    np.testing.assert_array_equal(model.apply(variables, image, prompts), expected)


def test_trained_extension_leaves_images_without_prompts(network):
    _, model, variables = network
    rng = np.random.default_rng(0)
    extension = jax.tree.map(
        lambda x: x + rng.normal(0, 1, x.shape).astype(np.float32), variables["params"]["extension"]
    )
    changed = {**variables, "params": {**variables["params"], "extension": extension}}
    image = jax.random.uniform(jax.random.key(1), (1, SIZE, SIZE))
    apply = jax.jit(model.apply)
    before, after = (apply(x, image, None) for x in (variables, changed))
    np.testing.assert_array_equal(after, before)
    with_click = [apply(changed, image, click(9.0, 5.0, label)) for label in (1, 2)]
    assert jnp.abs(with_click[0] - with_click[1]).max() > 1e-3


def test_click_logits_lie_at_the_clicked_pixel(network):
    config, model, variables = network
    image, logits = jnp.zeros((1, SIZE, SIZE)), []
    extension = jax.tree.map(jnp.zeros_like, variables["params"]["extension"])
    for weight in (0.0, 1.0):
        rest = extension | {"click_logits": weight * jnp.eye(config.num_classes)}
        changed = {**variables, "params": {**variables["params"], "extension": rest}}
        logits.append(jax.jit(model.apply)(changed, image, click(9.0, 5.0, 2))[0])
    added = logits[1] - logits[0]
    np.testing.assert_allclose(added[5, 9], [0, 0, interactive.CLICK_GAIN], atol=1e-4)
    np.testing.assert_allclose(added[5, 13], 0, atol=1e-4)


@pytest.mark.parametrize("part", [x for x in VARIANTS.values() if x])
def test_ablation_withholds_one_part_of_the_clicks(part):
    extension = interactive.Interactive(3, 8, SIZE, (4, 6), (1, 2), jnp.float32)
    rng = np.random.default_rng(0)
    previous = jnp.asarray(rng.uniform(size=(1, SIZE, SIZE, 3)), jnp.float32)
    prompts = dataclasses.replace(click(9.0, 5.0, 2), previous=previous)
    variables = jax.eval_shape(extension.init, jax.random.key(0), prompts)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables)
    whole = extension.apply(variables, prompts)
    blind = extension.apply(variables, dataclasses.replace(prompts, previous=None))
    assert np.any(blind.embedding != whole.embedding) and np.any(blind.maps[0] != whole.maps[0])
    with nn.intercept_methods(cut(part)):
        found = extension.apply(variables, prompts)
    for name in ("embedding", "maps", "logits"):
        expected = blind if part == "previous" else whole
        for x, y in zip(
            *(jax.tree.leaves(getattr(h, name)) for h in (found, expected)), strict=True
        ):
            np.testing.assert_array_equal(x, 0 * y if name == part else y)
            assert np.any(y)


def test_points_without_classes_are_an_error(network):
    _, model, variables = network
    prompts = Prompts(points_xy=jnp.zeros((1, 1, 2)), point_labels=jnp.ones((1, 1), jnp.int32))
    with pytest.raises(ValueError, match="point_classes"):
        model.apply(variables, jnp.zeros((1, SIZE, SIZE)), prompts)


def test_click_maps_peak_at_the_given_points():
    weights = jnp.array([[[0.0, 1.0], [0.0, 0.0]]])  # the second point is not given
    maps = interactive.click_maps(jnp.array([[[5.0, 20.0], [9.0, 9.0]]]), weights, SIZE, 3.0)
    assert maps.shape == (1, SIZE, SIZE, 2)
    assert maps[0, 20, 5, 1] == 1.0
    np.testing.assert_allclose(maps[0, 20, 8, 1], np.exp(-0.5), rtol=1e-6)
    assert maps[..., 0].max() == 0


def test_interactive_usam_needs_a_skip():
    with pytest.raises(UsageError, match=r"config\.model\.num_skips: got 0"):
        make_model(small_config("usam", interactive=True, num_skips=0))


def test_batch_norm_shares_the_statistics_of_a_pass():
    norm, key = BatchNorm(), jax.random.key(0)
    first = 3 + 2 * jax.random.normal(key, (4, 5, 5, 2))
    second = jax.random.normal(jax.random.key(1), (4, 5, 5, 2))
    variables = norm.init(key, first, True)

    def both(first):
        _, changed = norm.apply(variables, first, True, mutable=["batch_stats", SHARED])
        given = {**variables, SHARED: changed[SHARED]}
        return norm.apply(given, second, True), changed["batch_stats"]

    y, stats = both(first)
    mean, deviation = first.mean((0, 1, 2)), first.std((0, 1, 2))
    np.testing.assert_allclose(y, (second - mean) / deviation, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    gradient = jax.grad(lambda x: both(x)[0].sum())(first)
    assert jnp.abs(gradient).max() > 1e-3  # through the statistics
