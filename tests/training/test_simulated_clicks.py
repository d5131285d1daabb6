"""Clicks that the training step simulates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import phantom_config
from jax.sharding import Mesh

from usam_jax import models
from usam_jax.data.prompts import make_add_prompts
from usam_jax.models.common.prompts import (
    BACKGROUND,
    FOREGROUND,
    PADDING,
    Prompts,
    batch_prompts,
)
from usam_jax.training import checks, loop, simulated_clicks
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import make_mesh, shard_batch

SIZE = 32
INTERACTIVE = {"model.interactive": True, "prompts.kind": "interactive", "prompts.rounds": 2}


def discs() -> np.ndarray:
    """Labels uint8[2 s s]: a disc of class 1, and a slice without foreground."""
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = (np.hypot(x - 20, y - 12) < 6).astype(np.uint8)
    return np.stack([disc, np.zeros_like(disc)])


def first_prompts(labels: np.ndarray) -> dict[str, np.ndarray]:
    config = phantom_config(**INTERACTIVE)
    rng = np.random.default_rng(0)
    made = [make_add_prompts(config)({"label": x}, rng) for x in labels]
    names = ("points_xy", "point_labels", "point_classes", "boxes_xyxy", "prompts_given")
    return {name: np.stack([x[name] for x in made]) for name in names}


def test_add_click_lies_on_an_error_with_its_class():
    labels = discs()
    prompts = batch_prompts({x: jnp.array(y) for x, y in first_prompts(labels).items()})
    first = prompts.point_labels.shape[1]
    prompts = simulated_clicks.with_room(prompts, 2)
    logits = jnp.zeros((2, SIZE, SIZE, 3)).at[..., 0].set(1.0)  # background everywhere
    after = simulated_clicks.add_click(prompts, logits, labels, first, jax.random.key(0))
    x, y = np.asarray(after.points_xy[0, first], int)
    assert labels[0, y, x] == 1
    assert after.point_classes[0, first] == 1 and after.point_labels[0, first] == FOREGROUND
    assert after.given[0, first] and not after.given[1, first]
    assert after.point_labels[1, first] == PADDING  # nothing is wrong there
    wrong = jnp.zeros((2, SIZE, SIZE, 3)).at[..., 2].set(1.0)  # tumour everywhere
    after = simulated_clicks.add_click(after, wrong, labels, first + 1, jax.random.key(1))
    assert after.given[:, first + 1].all()
    assert after.point_labels[1, first + 1] == BACKGROUND
    np.testing.assert_allclose(after.previous.sum(-1), 1, rtol=1e-6)


def test_draw_clicks_prefers_the_middle_of_errors():
    wrong = jnp.array(discs() == 1)[:1]
    keys = jax.random.split(jax.random.key(0), 50)
    drawn = np.array([simulated_clicks.draw_clicks(wrong, key)[0][0] for key in keys])
    distance = np.hypot(drawn % SIZE - 20, drawn // SIZE - 12)
    assert distance.mean() < 3  # 4 if all pixels of the disc were equally likely


def test_click_loss_is_the_cross_entropy_at_the_clicks():
    logits = jnp.zeros((1, SIZE, SIZE, 3)).at[0, 4, 7].set(jnp.array([0.0, 5.0, 0.0]))
    prompts = Prompts(
        points_xy=jnp.array([[[7.0, 4.0], [1.0, 1.0], [9.0, 9.0]]]),
        point_labels=jnp.array([[FOREGROUND, FOREGROUND, PADDING]]),
        point_classes=jnp.array([[1, 2, 1]]),
        given=jnp.array([[True, True, True, False]]),
    )
    at_first = np.log(np.exp(5) + 2) - 5
    found = simulated_clicks.click_loss(logits, prompts)
    np.testing.assert_allclose(found, (at_first + np.log(3)) / 2, rtol=1e-6)
    nothing = dataclasses.replace(prompts, given=jnp.zeros((1, 4), bool))
    assert simulated_clicks.click_loss(logits, nothing) == 0


def test_first_prompts_are_none_points_or_a_box():
    add = make_add_prompts(phantom_config(**INTERACTIVE))
    rng = np.random.default_rng(0)
    given = np.stack([add.draw_first_prompts(rng) for _ in range(400)])
    none = ~given.any(1)
    assert 0.4 < none.mean() < 0.6
    assert 0.15 < given[:, -1].mean() < 0.35
    points = given[given[:, :-1].any(1), :-1].reshape(-1, 2, 3)
    assert (points[:, 0] == points[:, 1]).all()  # as many of each class
    assert set(points[:, 0].sum(1)) == {1, 2, 3}


def test_interactive_kind_needs_an_interactive_network():
    config = phantom_config(**{"prompts.kind": "interactive"})
    with pytest.raises(UsageError, match=r"config\.model\.interactive=True"):
        checks.check(config, make_mesh(1))


@pytest.mark.parametrize("kind", ["interactive", "points"])
def test_interactive_network_takes_no_rows_and_columns(kind):
    fields = {"model.interactive": True, "prompts.kind": kind, "prompts.order": "rowcol"}
    with pytest.raises(UsageError, match="expected xy for an interactive network"):
        checks.check(phantom_config(**fields), make_mesh(1))


def interactive_batch() -> dict[str, np.ndarray]:
    labels = discs()
    return {
        "image": (labels * 100).astype(np.uint8),
        "label": labels,
        "index": np.arange(2, dtype=np.int32),
        **first_prompts(labels),
    }


@pytest.mark.slow
def test_interactive_step_lowers_loss_without_recompiling():
    changes = {"model.deep_supervision": 0.3, "prompts.rounds": 1, "train.batch_size": 2}
    config = phantom_config("usam", **(INTERACTIVE | changes))
    mesh: Mesh = make_mesh(1)
    training = loop.make_training(config, 10, mesh)
    state, losses = training.start_fn(), []
    before = np.array(state.params["mask_decoder"]["coarse_head"]["kernel"])
    placed = shard_batch(interactive_batch(), mesh)
    for _ in range(6):
        state, values = training.train_step(state, placed)
        losses.append(float(values["train/loss"]))
    assert training.train_step._cache_size() == 1
    assert losses[-1] < losses[0]
    assert float(values["grad_norm/interactive"]) > 0
    after = np.asarray(state.params["mask_decoder"]["coarse_head"]["kernel"])
    assert np.abs(after - before).max() > 1e-3  # weight decay alone is 1e-6


def test_interactive_step_encodes_once():
    mesh: Mesh = make_mesh(1)
    placed = shard_batch(interactive_batch(), mesh)
    flops = []
    for rounds in (1, 2):
        changed = INTERACTIVE | {"prompts.rounds": rounds, "train.batch_size": 2}
        config = phantom_config("sam_s", **changed)
        training = loop.make_training(config, 10, mesh)
        flops.append(training.train_step.lower(training.target, placed).cost_analysis()["flops"])
    network = models.make_model(config.model)
    variables = models.variable_shapes(config.model)

    def encode(variables, images):
        return network.apply(variables, images, method="encode").embedding.sum()

    images = jax.ShapeDtypeStruct((2, SIZE, SIZE), jnp.float32)
    encoder = jax.jit(jax.grad(encode)).lower(variables, images).cost_analysis()["flops"]
    round_ = flops[1] - flops[0]
    # All but the rounds is one encoding and the optimizer. The first round draws no click.
    assert flops[0] - 2 * round_ > encoder / 2
