"""U-SAM compared with the values that the published PyTorch code printed (float32, CPU).

Tolerances: between one thread and two, the published code itself differs by 1e-6 of the logits'
norm, by up to 0.6 % of a gradient's norm (a ReLU that flips at zero), and by 4e-4 in AdamW losses.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
from conftest import model_config
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax import convert
from usam_jax.models import Prompts, make_model
from usam_jax.models.common.spec import merge_params, split_params
from usam_jax.models.usam import SPEC
from usam_jax.training import losses, optimizer
from usam_jax.weights import name_map
from usam_jax.weights.maps import usam

pytestmark = pytest.mark.optimised

TOLERANCES = json.loads((recipe.USAM / "source.json").read_text())["tolerances"]
PLACES = {
    "inc": "backbone/inc",
    **{f"down{i}": f"backbone/down{i}" for i in range(1, 5)},
    **{f"block{i}": f"image_encoder/blocks_{i}" for i in (0, 2, 11)},
    "neck": "image_encoder",
    **{f"up{i}": f"mask_decoder/up{i}" for i in range(1, 5)},
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(recipe.USAM / f"{name}.npz") as file:
        return dict(file)


def assert_probe(golden, name: str, array, rtol_norm: float) -> None:
    """Assert that samples of `array` (torch's layout) equal `golden`, relative to its RMS."""
    row = list(golden["names"]).index(name)
    value = golden["value"][row]
    summary, sampled = recipe.probe(name, array, int(np.isfinite(value).sum()))
    rms = golden["summary"][row][2] / np.sqrt(np.size(array))
    np.testing.assert_allclose(sampled, value[: sampled.size], rtol=0, atol=rtol_norm * rms)
    # The tolerance is relative to the norm, which bounds mean and deviation.
    np.testing.assert_allclose(
        summary, golden["summary"][row], rtol=rtol_norm, atol=rtol_norm * rms
    )


def make_prompts(mode: str, batch: int, count: int, salt: str = "") -> Prompts | None:
    points = boxes = labels = None
    if "points" in mode:
        points = jnp.asarray(recipe.points(batch, count, salt))
        labels = jnp.ones((batch, count), jnp.int32)
    if "box" in mode:
        boxes = jnp.asarray(recipe.boxes(batch, salt))
    return None if mode == "no_prompt" else Prompts(points, labels, boxes)


def nchw(x) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def capture(model, method: str = "__call__"):
    """A jitted method that returns its output and all activations, by path of their module."""

    def run(variables, *inputs):
        return model.apply(
            variables, *inputs, method=method, capture_intermediates=True, mutable=["intermediates"]
        )

    def call(variables, *inputs):
        output, state = jax.jit(run)(variables, *inputs)
        return output, traverse_util.flatten_dict(state["intermediates"], sep="/")

    return call


def check_stages(file: str, mode: str, model, variables, logits, calls):
    golden, rtol = load(file), TOLERANCES["stages"]
    for stage, place in PLACES.items():
        found = calls[f"{place}/__call__"][0]
        assert_probe(golden, stage, found if stage.startswith("block") else nchw(found), rtol)
    tokens, source = calls["mask_decoder/transformer/__call__"][0]
    assert_probe(golden, "transformer.0", tokens, rtol)
    assert_probe(golden, "transformer.1", source, rtol)
    sparse, _ = calls["prompt_encoder/__call__"][0]
    if mode != "no_prompt":
        assert_probe(golden, "sparse_prompt", sparse, rtol)
    dense_pe = model.apply(variables, 14, method=lambda m, g: m.prompt_encoder.image_positions(g))
    assert_probe(golden, "dense_pe", nchw(dense_pe), rtol)

    row = list(golden["names"]).index("logits")
    _, sampled = recipe.probe("logits", nchw(logits))
    np.testing.assert_allclose(sampled, golden["value"][row], rtol=0, atol=TOLERANCES["logits"])
    labels = np.asarray(logits.argmax(-1))
    counts = [np.bincount(x.ravel(), minlength=model.num_classes) for x in labels]
    np.testing.assert_array_equal(counts, golden["label_counts"])


@pytest.fixture(scope="module")
def care_encoded(care_variables):
    """Features of two images, which all prompt modes share, and the activations before them."""
    encode = capture(make_model(model_config()), "encode")
    return encode(care_variables, jnp.asarray(recipe.images(2)))


@pytest.mark.parametrize("mode", ["no_prompt", "points", "box", "points_box"])
def test_care_stages_equal_the_published_ones(mode, care_variables, care_encoded):
    model = make_model(model_config())
    features, calls = care_encoded
    logits, decoded = capture(model, "decode")(care_variables, features, make_prompts(mode, 2, 6))
    check_stages(f"care_eval_{mode}", mode, model, care_variables, logits, calls | decoded)


def test_word_stages_equal_the_published_ones():
    config = model_config(num_classes=17)
    model = make_model(config)
    variables = convert.from_usam(recipe.state_dict("usam_word"), config)
    inputs = jnp.asarray(recipe.images(1)), make_prompts("points", 1, 48)
    logits, calls = capture(model)(variables, *inputs)
    check_stages("word_eval_points", "points", model, variables, logits, calls)


def train_batch(step: int):
    salt = f"step{step}"
    labels = jnp.asarray(recipe.masks(2, 3, salt), jnp.int32)
    return jnp.asarray(recipe.images(2, salt)), labels, make_prompts("points", 2, 6, salt)


@functools.cache
def make_grad_fn():
    model = make_model(model_config())

    def loss_fn(trainable, frozen, rest, images, labels, prompts):
        logits, state = model.apply(
            {"params": merge_params(trainable, frozen), **rest},
            images,
            prompts,
            train=True,
            mutable=["batch_stats"],
        )
        loss, parts = losses.segmentation_loss(logits, labels)
        return loss, (parts, logits, state["batch_stats"])

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def make_gradients(params, frozen, rest, step: int):
    """Losses [3] (total, cross entropy, Dice), gradients, statistics and logits of a step."""
    (loss, (parts, logits, stats)), grads = make_grad_fn()(params, frozen, rest, *train_batch(step))
    return [float(loss), float(parts["ce"]), float(parts["dice"])], grads, stats, logits


@pytest.fixture(scope="module")
def first_step(care_variables):
    """`make_gradients` of the step that both optimisers begin with."""
    return make_gradients(*split_variables(care_variables), 0)


def split_variables(variables):
    """Trainable parameters, frozen ones, and the other collections."""
    return *split_params(variables["params"], SPEC), {
        k: v for k, v in variables.items() if k != "params"
    }


def run_steps(variables, tx, num_steps: int, first_step):
    """Losses [steps, 3] and the updates of step 0."""
    quick = {"xla_backend_optimization_level": 0}  # the update is less work than its compilation

    @functools.partial(jax.jit, compiler_options=quick)
    def update(grads, opt_state, params):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, updates

    params, frozen, rest = split_variables(variables)
    opt_state = jax.jit(tx.init, compiler_options=quick)(params)
    losses, grads, stats, _ = first_step
    params, opt_state, first_updates = update(grads, opt_state, params)
    rows = [losses]
    for step in range(1, num_steps):
        rest = {**rest, "batch_stats": stats}
        losses, grads, stats, _ = make_gradients(params, frozen, rest, step)
        rows.append(losses)
        params, opt_state, _ = update(grads, opt_state, params)
    return np.array(rows), first_updates


def torch_tensors(tree, collection: str = "params") -> dict[str, np.ndarray]:
    """The tree's arrays in torch's layout under their names in the published checkpoint."""
    out = {}
    for path, array in traverse_util.flatten_dict(tree).items():
        leaf = name_map.make_leaf((collection, *path), array.shape, usam.PUBLISHED)
        out |= zip(leaf.names, leaf.to_torch(np.asarray(array)), strict=True)
    return out


def has_gradient(name: str) -> bool:
    """Whether the exact gradient differs from zero.

    A bias before BatchNorm and a key's bias in attention change no output, so that only rounding
    is left of their gradient.
    """
    before_norm = name.endswith((".conv.bias", "final_output.0.bias"))
    return not before_norm and not name.endswith("k_proj.bias")


def test_adamw_steps_equal_the_published_ones(care_variables, first_step):
    golden = load("care_train_points")
    config = ConfigDict(
        {
            "learning_rates": {"backbone": 1e-4, "image_encoder": 1e-4, "mask_decoder": 1e-3},
            "name": "adamw",
            "weight_decay": 1e-4,
            "clip_norm": 0.0,
        }
    )
    tx = optimizer.make_optimizer(config, optimizer.polynomial_decay(num_steps=100), SPEC)
    rows, updates = run_steps(care_variables, tx, 4, first_step)
    _, grads, stats, logits = first_step
    np.testing.assert_allclose(rows[0], golden["losses"][0], rtol=0, atol=1e-6)
    for row, expected, atol in zip(rows, golden["losses"], [1e-5, 1e-4, 5e-4, 2e-3], strict=True):
        np.testing.assert_allclose(row, expected, rtol=0, atol=atol)
    assert_probe(golden, "logits_train", nchw(logits), 1e-4)

    stats = torch_tensors(stats, "batch_stats")
    grads, updates = torch_tensors(grads), torch_tensors(updates)
    checked = {"grad": 0, "update": 0, "stats": 0}
    for row, name in enumerate(golden["names"]):
        kind, _, tensor = str(name).partition("/")
        summary, value = golden["summary"][row], golden["value"][row]
        if kind == "stats" and "lowres_output" not in tensor:
            assert_probe(golden, name, stats[tensor], 1e-5)
        elif kind == "grad" and has_gradient(tensor):
            found, samples = recipe.probe(name, grads[tensor], 8)
            np.testing.assert_allclose(found[2], summary[2], rtol=0.02, err_msg=name)
            rms = summary[2] / np.sqrt(grads[tensor].size)
            # The norm is 2 % off at most; a single sample may be off by several times more.
            np.testing.assert_allclose(samples, value[:8], rtol=0.1, atol=0.1 * rms, err_msg=name)
        elif kind == "update" and has_gradient(tensor):
            # Adam's first step is the gradient's sign, so compare where it exceeds rounding.
            gradient = grads[tensor].ravel()
            index = recipe.stream(f"probe/{name}").randint(0, gradient.size, size=8)
            clear = np.abs(gradient[index]) > 0.1 * np.linalg.norm(gradient) / gradient.size**0.5
            # Parameters of order one limit the precision of their float32 difference.
            found, expected = updates[tensor].ravel()[index][clear], value[:8][clear]
            np.testing.assert_allclose(found, expected, rtol=5e-3, atol=2.4e-7, err_msg=name)
        else:
            continue
        checked[kind] += 1
    assert checked == {"grad": 507, "update": 507, "stats": 36}


def test_sgd_steps_equal_the_published_ones(care_variables, first_step):
    golden = load("care_sgd_points")["losses"]
    rows, _ = run_steps(care_variables, optax.sgd(0.02), 5, first_step)
    np.testing.assert_allclose(rows[0], golden[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows, golden, rtol=0, atol=2e-5)


def test_from_sam_loads_what_the_published_model_loads():
    golden = load("sam_to_usam")
    params, report = convert.from_sam(recipe.state_dict("sam_vit_b"), model_config())
    tensors = torch_tensors(params) | torch_tensors(report.constants, "constants")
    tensors = {name.removeprefix("sam."): value for name, value in tensors.items()}
    for name in golden["names"]:
        assert_probe(golden, name, tensors[name], 1e-5)  # interpolation weights are float32
    unused = {name for name, why in report.left.items() if why != usam.FRESH}
    # The published code also loads tensors that it never uses.
    also_loaded = {n for n in unused if "iou_prediction_head" not in n}
    assert {*report.loaded, *also_loaded} == set(golden["loaded"])
    assert len(report.resized) == 9
    assert {
        n
        for n in golden["not_loaded"]
        if n.startswith("mask_decoder") and not name_map.first_match(n, usam.PUBLISHED.ignored)
    } == {n for n in report.fresh if n.startswith("mask_decoder")}
