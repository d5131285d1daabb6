"""nnU-Net's training as published, and plans other than the default."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
from test_zoo import assert_probe, golden_state_dict, read_golden, small_config, to_torch_layout

from configs import care
from usam_jax import convert, models
from usam_jax.models import ops
from usam_jax.models.common.spec import merge_params, split_params
from usam_jax.training import losses, optimizer
from usam_jax.training.step import sown
from usam_jax.utils.errors import UsageError
from usam_jax.weights import load


@pytest.fixture(scope="module")
def plain():
    """Golden values of the plain network, and its config and variables."""
    golden, source, manifest = read_golden("nnunet")
    config = models.make_config("nnunet")
    return golden, config, convert.from_published(golden_state_dict(manifest, source), config)


@pytest.mark.optimised
def test_published_training_equals_nnunets(plain):
    golden, config, variables = plain
    spec, model = models.get("nnunet").at(config), models.make_model(config)
    settings = care.get_config("nnunet")
    settings.optimizer.update(
        {"name": "sgd", "momentum": 0.99, "weight_decay": 3e-5, "clip_norm": 12.0}
    )
    settings.optimizer.learning_rates.all = 0.01
    settings.train.update({"ce_weight": 1.0, "dice_weight": 1.0, "dice": "foreground"})
    loss_fn = losses.make_loss(settings.train)
    tx = optimizer.make_optimizer(settings.optimizer, lambda step: 1.0, spec)
    trainable, frozen = split_params(variables["params"], spec)

    @jax.jit
    def train_step(trainable, state, images, labels):
        def total_loss(trainable):
            params = merge_params(trainable, frozen)
            logits, changed = model.apply(
                {"params": params}, images, train=True, mutable=["aux_logits"]
            )
            outputs = {"logits": logits, **sown(changed["aux_logits"])}
            total = losses.weighted_loss(outputs, labels, spec.loss_weights, loss_fn)[0]
            deep = {
                name: loss_fn(x, losses.resize_labels(labels, x))[0] for name, x in outputs.items()
            }
            return total, deep

        (total, deep), grads = jax.value_and_grad(total_loss, has_aux=True)(trainable)
        updates, state = tx.update(grads, state, trainable)
        norm = optax.tree.norm(grads)
        return optax.apply_updates(trainable, updates), state, total, deep, norm

    state = tx.init(trainable)
    for step, (atol, rtol) in enumerate([(1e-6, 0.01), (2e-5, 0.01), (3e-4, 0.01)]):
        images = jnp.asarray(recipe.images(2, f"step{step}"))
        labels = jnp.asarray(recipe.masks(2, 3, f"step{step}"), jnp.int32)
        trainable, state, total, deep, norm = train_step(trainable, state, images, labels)
        # Their Dice loss is ours minus 1, and the weights of the outputs sum to 1.
        np.testing.assert_allclose(total - 1, golden["published_losses"][step], rtol=0, atol=atol)
        np.testing.assert_allclose(norm, golden["published_norms"][step], rtol=rtol)
        if step == 0:
            names = ("logits", "deep1", "deep2", "deep3")  # the coarsest has no loss
            found = [deep[name] - 1 for name in names]
            np.testing.assert_allclose(found, golden["deep/losses"][:4, 0], rtol=0, atol=1e-5)
            assert deep.keys() == set(names)


def test_labels_of_deep_outputs_equal_nnunets(plain):
    labels = jnp.asarray(recipe.masks(2, 3, "step0"), jnp.int32)
    shapes = [jnp.zeros((2, 224 >> i, 224 >> i, 3)) for i in range(5)]
    sums = [int(losses.resize_labels(labels, x).sum()) for x in shapes]
    assert sums == plain[0]["deep/label_sums"].tolist()


@pytest.mark.optimised
def test_transposed_convolution_equals_nnunets(plain):
    golden, config, variables = plain
    images = jnp.asarray(recipe.images(2))
    model, up = models.make_model(config), variables["params"]["decoder"]["transpconvs_0"]

    @jax.jit
    def deepest(variables, images):
        _, state = model.apply(variables, images, capture_intermediates=True)
        x = state["intermediates"]["encoder"]["stages_5"]["__call__"][0]
        return ops.up_conv(x, up["kernel"], up["bias"])

    found = to_torch_layout(deepest(variables, images))
    assert_probe(golden, "transpconv0", found, 1e-4)


def ramps(config):
    """Variables of the network without the time to compile their initialisers."""
    shapes = models.variable_shapes(config)
    return jax.tree.map(lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape), shapes)


def test_plan_may_differ_along_the_axes():
    plan = {"strides": (1, (2, 1), 2, 2), "kernel_sizes": ((1, 3), 3, 3, 3)}
    config = small_config("nnunet_resenc", **plan, image_size=24)
    variables = ramps(config)
    logits = jax.eval_shape(models.make_model(config).apply, variables, jnp.zeros((2, 24, 24)))
    assert logits.shape == (2, 24, 24, 3)
    back = convert.from_published(load.to_published(variables, config), config)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "features",
            (8, 16),
            r"features: got \(8, 16\), expected the channels of 3 stages or more",
        ),
        ("depths", (1, 1), r"depths: got \(1, 1\), expected 4 entries"),
        ("strides", (1, 2, 2, 0), "strides: .* expected 1 or more for each stage"),
        ("kernel_sizes", (3, 3, 3, (2, 3)), "kernel_sizes: .* expected odd sizes"),
        ("grey_std", 0.0, "grey_std: got 0.0, expected more than 0"),
        ("image_size", 36, "image_size: got 36, expected a positive multiple of 8"),
    ],
)
def test_make_model_names_invalid_plan(field, value, message):
    config = small_config("nnunet")
    config[field] = value
    with pytest.raises(UsageError, match=f"config.model.{message}"):
        models.make_model(config)


def test_from_published_drops_names_that_repeat_a_tensor():
    config = small_config("nnunet")
    variables = ramps(config)
    tensors = load.to_published(variables, config)
    repeated = {}
    for name, tensor in tensors.items():
        repeated |= {name: tensor, name.replace(".conv.", ".all_modules.0."): tensor}
        if name.startswith("encoder."):
            repeated[f"decoder.{name}"] = tensor
    found = {f"_orig_mod.{name}": tensor for name, tensor in repeated.items()}
    assert len(found) > 1.5 * len(tensors)
    back = convert.from_published(found, config)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
