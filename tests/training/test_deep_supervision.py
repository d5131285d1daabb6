"""The loss of U-SAM's coarse logits, from the transformer's own map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_variables, phantom_config

from usam_jax import models
from usam_jax.models.common.prompts import batch_images
from usam_jax.training import interactive_loss, losses, simulated_clicks, step
from usam_jax.utils.errors import UsageError
from usam_jax.weights.maps.usam import PUBLISHED
from usam_jax.weights.name_map import from_torch, to_torch

SIZE = 32
COARSE = (2, SIZE // 16, SIZE // 16, 3)


def make_config(weight: float, **changes):
    plain = {"model.deep_supervision": weight, "prompts.kind": "none", "train.batch_size": 2}
    return phantom_config(**(plain | changes))


def make_batch() -> dict[str, np.ndarray]:
    labels = np.zeros((2, SIZE, SIZE), np.uint8)
    labels[0, 4:20, 6:22], labels[1, 20:, 12:] = 1, 2
    return {"image": labels * 100, "label": labels, "index": np.arange(2, dtype=np.int32)}


def make_clicks() -> dict[str, np.ndarray]:
    """`make_batch` with room for prompts, none of them given."""
    return make_batch() | {
        "points_xy": np.zeros((2, 4, 2), np.float32),
        "point_labels": np.full((2, 4), -1, np.int32),
        "point_classes": np.zeros((2, 4), np.int32),
        "boxes_xyxy": np.zeros((2, 4), np.float32),
        "prompts_given": np.zeros((2, 5), bool),
    }


def without_head(variables):
    decoder = dict(variables["params"]["mask_decoder"])
    assert decoder.pop("coarse_head")
    return {**variables, "params": {**variables["params"], "mask_decoder": decoder}}


def test_coarse_logits_join_the_loss_and_change_no_output():
    config, batch = make_config(0.5).model, make_batch()
    variables = make_variables(config)
    deep, plain = (models.make_model(make_config(x).model) for x in (0.5, 0.0))
    images, labels = jnp.asarray(batch["image"]), jnp.asarray(batch["label"], jnp.int32)
    collections = ["batch_stats", "aux_logits"]

    def run(model, variables):
        return model.apply(variables, batch_images(images), None, True, mutable=collections)

    expected = jax.jit(lambda v: run(plain, v))(without_head(variables))[0]
    logits, changed = jax.jit(lambda v: run(deep, v))(variables)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)

    outputs = {"logits": logits, **step.sown(changed["aux_logits"])}
    (coarse,) = (x for name, x in outputs.items() if name != "logits")
    assert coarse.shape == COARSE
    weights = models.get("usam").at(config).loss_weights
    fine = losses.segmentation_loss(logits, labels)[0]
    centres = losses.segmentation_loss(coarse, labels[:, 8::16, 8::16])[0]
    found = losses.weighted_loss(outputs, labels, weights)[0]
    np.testing.assert_allclose(found, fine + 0.5 * centres, rtol=1e-6)


def test_interactive_loss_has_coarse_logits_in_each_round():
    config = make_config(0.5, **{"model.interactive": True, "prompts.kind": "interactive"})
    network, shapes = models.make_model(config.model), []

    def loss_of(logits, changed, labels):
        shapes.append(changed["aux_logits"]["mask_decoder"]["coarse"][0].shape)
        return losses.segmentation_loss(logits, labels)

    jax.eval_shape(
        lambda variables, batch: interactive_loss.interactive_loss(
            network, variables, batch, 2, jax.random.key(0), loss_of
        ),
        models.variable_shapes(config.model),
        make_clicks(),
    )
    assert shapes == [COARSE] * 3


def test_automatic_round_and_obedience_have_their_weights(monkeypatch):
    config = make_config(0.0, **{"model.interactive": True, "prompts.kind": "interactive"})
    rounds = iter([8.0, 2.0, 4.0])
    monkeypatch.setattr(simulated_clicks, "click_loss", lambda *_: jnp.float32(6))

    @jax.jit
    def loss(variables, batch):
        loss_of = lambda *_: (jnp.float32(next(rounds)), {})
        network, key = models.make_model(config.model), jax.random.key(0)
        return interactive_loss.interactive_loss(network, variables, batch, 2, key, loss_of)[0]

    found = loss(make_variables(config.model), make_clicks())
    np.testing.assert_allclose(found, (2 * 8 + (2 + 0.5 * 6) + (4 + 0.5 * 6)) / 4, rtol=1e-6)


def test_negative_weight_is_an_error():
    with pytest.raises(
        UsageError, match=r"config\.model\.deep_supervision: got -0\.5, expected 0 or"
    ):
        models.make_model(make_config(-0.5).model)


def test_published_checkpoint_leaves_the_head_as_it_was():
    config = make_config(0.5).model
    tensors = to_torch(make_variables(config), PUBLISHED, config)
    assert not any("coarse_head" in name for name in tensors)
    report = from_torch(tensors, PUBLISHED, config)[1]
    assert [name for name in report.fresh if "coarse_head" not in name] == []
    assert len(report.fresh) == 2
