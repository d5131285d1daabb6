"""Shapes, parameter counts, variants and precision. test_golden checks the values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from conftest import make_variables, model_config, phantom_config
from flax import linen as nn
from flax import traverse_util

from usam_jax.models import Prompts, init_variables, make_model, variable_shapes
from usam_jax.models.common import layers
from usam_jax.models.common.up_block import UpConvUnit
from usam_jax.models.sam.attention import Attention
from usam_jax.models.sam.image_encoder import window_partition, window_unpartition
from usam_jax.utils.errors import UsageError
from usam_jax.weights import name_map
from usam_jax.weights.maps.usam import PUBLISHED

BACKBONE = {"vit_b": 8_247_360, "vit_l": 12_967_488, "vit_h": 18_867_264}
IMAGE_ENCODER = {"vit_b": 86_033_920, "vit_l": 303_446_016, "vit_h": 630_985_728}
PATCH_EMBEDDING = {"vit_b": 590_592, "vit_l": 787_456, "vit_h": 984_320}


def tiny(**changes):
    return model_config(**{"variant": "tiny", "image_size": 112, **changes})


def smallest(name: str = "usam", **changes):
    """The smallest variant, for what does not depend on the number of blocks."""
    config = phantom_config(name).model
    config.update({"image_size": 112, **changes})
    return config


def count_by_part(config) -> dict[str, int]:
    shapes = variable_shapes(config)["params"]
    return {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in shapes.items()}


def make_inputs(size: int = 112, batch: int = 2):
    images = jnp.asarray(recipe.images(batch, size=size))
    points = jnp.asarray(recipe.points(batch, 4, size=size))
    labels = jnp.array([[1, 1, 0, -1]] * batch, jnp.int32)
    return images, points, labels, jnp.asarray(recipe.boxes(batch, size=size))


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_parameter_counts_are_exact_for_each_part(variant):
    assert count_by_part(model_config(variant=variant)) == {
        "backbone": BACKBONE[variant],
        "image_encoder": IMAGE_ENCODER[variant],
        "mask_decoder": 9_128_480,
        "prompt_encoder": 1_536,
    }
    baseline = count_by_part(model_config(variant=variant, name="sam_s"))
    assert baseline["image_encoder"] == IMAGE_ENCODER[variant] + PATCH_EMBEDDING[variant]
    assert "backbone" not in baseline


@pytest.mark.parametrize(("name", "num_classes"), [("usam_care", 3), ("usam_word", 17)])
def test_variables_match_the_published_checkpoint(name, num_classes):
    published = recipe.manifest(name)
    used = {n: s for n, s in published.items() if not name_map.first_match(n, PUBLISHED.ignored)}
    leaves = name_map.model_leaves(model_config(num_classes=num_classes), PUBLISHED)
    assert {n: leaf.torch_shape for leaf in leaves for n in leaf.names} == used
    buffers = ("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix")
    parameters = [s for n, s in published.items() if not n.endswith(buffers)]
    if name == "usam_care":
        assert sum(int(np.prod(s)) for s in parameters) == 104_155_791


@pytest.mark.parametrize("name", ["usam", "sam_s"])
def test_call_equals_decode_of_encode(name):
    config = smallest(name)
    model = make_model(config)
    images, points, labels, boxes = make_inputs()
    variables = make_variables(config)
    apply = jax.jit(model.apply)
    features = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, images)
    decode = jax.jit(lambda v, f, p: model.apply(v, f, p, method="decode"))
    for prompts in (
        None,
        Prompts(points, labels),
        Prompts(None, None, boxes),
        Prompts(points, labels, boxes),
    ):
        whole = apply(variables, images, prompts)
        assert whole.shape == (2, 112, 112, 3)
        assert whole.dtype == jnp.float32
        # One program may round the same sums in another order than two programs.
        np.testing.assert_allclose(whole, decode(variables, features, prompts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_skips", range(5))
def test_num_skips_uses_only_the_deepest_skips(num_skips):
    config = smallest(num_skips=num_skips)
    model = make_model(config)
    images, points, labels, _ = make_inputs(batch=1)
    variables = make_variables(config)
    features = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, images)

    def total(skips):
        changed = features.replace(skips=skips)
        return model.apply(variables, changed, Prompts(points, labels), method="decode").var()

    gradients = jax.jit(jax.grad(total))(features.skips)
    used = [bool(jnp.any(g != 0)) for g in gradients]
    assert used == [4 - i <= num_skips for i in range(4)]


def test_mask_tokens_can_be_one_per_class():
    config = tiny(num_mask_tokens=3)
    model = make_model(config)
    images, *_ = make_inputs()
    variables = make_variables(config)
    logits = jax.eval_shape(model.apply, variables, images, None)
    assert logits.shape == (2, 112, 112, 3)
    assert variables["params"]["mask_decoder"]["mask_tokens"].shape == (3, 64)


@pytest.mark.parametrize("image_size", [96, 160])
def test_model_accepts_sizes_whose_windows_need_padding(image_size):
    config = smallest(image_size=image_size)
    model = make_model(config)
    images, points, labels, _ = make_inputs(image_size)
    logits = jax.jit(model.apply)(make_variables(config), images, Prompts(points, labels))
    assert logits.shape == (2, image_size, image_size, 3)
    assert bool(jnp.isfinite(logits).all())


def test_window_partition_pads_and_window_unpartition_inverts():
    x = jnp.arange(2 * 10 * 10 * 3, dtype=jnp.float32).reshape(2, 10, 10, 3)
    windows = window_partition(x, 7)
    assert windows.shape == (8, 7, 7, 3)
    np.testing.assert_array_equal(windows[1, :, :3], x[0, :7, 7:])
    assert not windows[1, :, 3:].any()
    np.testing.assert_array_equal(window_unpartition(windows, x.shape), x)


def test_attention_equals_its_definition_in_loops():
    side, heads, width = 3, 2, 8
    x = jnp.asarray(recipe.normal("attention", (1, side, side, width)))
    layer = Attention(heads, jnp.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    tables = {n: recipe.normal(n, params[n].shape) for n in ("rel_pos_h", "rel_pos_w")}
    params = {**params, **jax.tree.map(jnp.asarray, tables)}
    found = layer.apply({"params": params}, x)

    tokens = np.asarray(x, np.float64).reshape(side * side, width)
    qkv = tokens @ np.asarray(params["qkv"]["kernel"]) + np.asarray(params["qkv"]["bias"])
    q, k, v = qkv.reshape(side * side, 3, heads, -1).transpose(1, 2, 0, 3)
    out = np.zeros((side * side, heads, width // heads))
    for head in range(heads):
        for i in range(side * side):
            logits = np.zeros(side * side)
            for j in range(side * side):
                dy, dx = i // side - j // side + side - 1, i % side - j % side + side - 1
                bias = q[head, i] @ tables["rel_pos_h"][dy] + q[head, i] @ tables["rel_pos_w"][dx]
                logits[j] = q[head, i] @ k[head, j] / np.sqrt(width // heads) + bias
            weights = np.exp(logits - logits.max())
            out[i, head] = weights / weights.sum() @ v[head]
    out = out.reshape(side * side, width) @ np.asarray(params["proj"]["kernel"])
    expected = (out + np.asarray(params["proj"]["bias"])).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)  # float32 rounding


def test_bfloat16_model_returns_float32_logits():
    images, points, labels, _ = make_inputs()
    prompts = Prompts(points, labels)
    exact, rounded = make_model(tiny()), make_model(tiny(dtype="bfloat16"))
    variables = make_variables(tiny())
    shapes = variable_shapes(tiny(dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    features = jax.jit(lambda v, x: rounded.apply(v, x, method="encode"))(variables, images)
    assert features.embedding.dtype == jnp.bfloat16
    a, b = (jax.jit(m.apply)(variables, images, prompts) for m in (exact, rounded))
    assert b.dtype == jnp.float32
    # bfloat16 keeps 8 bits: after some ten layers the error is a few per cent of the norm.
    assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)) < 0.1


def output_and_gradients(function, given, above):
    """The function's output for `given`, and the gradients of the output's product with `above`."""

    @jax.jit  # one program instead of one for each operation
    def run(given, above):
        output, vjp = jax.vjp(function, *given)
        return output, vjp(above)

    return run(given, above)


@pytest.mark.parametrize("skip_channels", [0, 2])
@pytest.mark.parametrize("channels", [4, 16])
def test_up_conv_unit_equals_its_layers_in_sequence(channels, skip_channels):
    def draw(*shape):
        return jnp.asarray(recipe.normal(str(shape), shape))

    x, skip = draw(2, 3, 5, channels), draw(2, 6, 10, skip_channels) if skip_channels else None
    up, bias = draw(2, 2, channels, 6), draw(6)
    convs = {"kernel": draw(3, 3, 6 + skip_channels, 7), "bias": draw(7)}
    params = {"conv": convs, "norm": {"scale": 1 + 0.1 * draw(7), "bias": 0.5 * draw(7)}}
    stats = {"norm": {"mean": jnp.zeros(7), "var": jnp.ones(7)}}

    def at_once(x, skip, up, bias, params):
        variables = {"params": params, "batch_stats": stats}
        unit, given = UpConvUnit(7, jnp.float32), (x, skip, (up, bias), True)
        return unit.apply(variables, *given, mutable="batch_stats")[0]

    def one_by_one(x, skip, up, bias, params):
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2)).apply(
            {"params": {"kernel": up, "bias": bias}}, x
        )
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        variables = {"params": params, "batch_stats": stats}
        unit = layers.ConvUnit(7, jnp.float32)
        return unit.apply(variables, x, True, mutable="batch_stats")[0]

    given, above = (x, skip, up, bias, params), draw(2, 6, 10, 7)
    (found, found_grads), (expected, expected_grads) = (
        output_and_gradients(f, given, above) for f in (at_once, one_by_one)
    )
    # Sums of some hundred products of about 1, in another order.
    np.testing.assert_allclose(found, expected, atol=2e-5)
    pairs = zip(jax.tree.leaves(found_grads), jax.tree.leaves(expected_grads), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(abs(b).max())))


def test_model_promotes_no_dtype_implicitly():
    model = make_model(tiny())
    images, points, labels, boxes = make_inputs()
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    with jax.numpy_dtype_promotion("strict"):
        variables = variable_shapes(tiny())
        jax.eval_shape(apply, variables, images, Prompts(points, labels, boxes))


def test_prompt_encoder_replaces_padding_points():
    model = make_model(tiny())
    variables = make_variables(tiny())
    _, points, labels, _ = make_inputs()
    prompts = Prompts(points, labels)
    tokens, _ = model.apply(variables, prompts, 2, method=lambda m, p, b: m.prompt_encoder(p, b))
    padding = variables["params"]["prompt_encoder"]["not_a_point_embed"][0]
    assert tokens.shape == (2, 5, 64)  # SAM appends one padding token to points without a box
    np.testing.assert_array_equal(tokens[:, 3], jnp.stack([padding, padding]))
    np.testing.assert_array_equal(tokens[:, 4], jnp.stack([padding, padding]))


def test_mixed_batch_gives_each_image_the_logits_of_its_prompts():
    config = smallest()
    model = make_model(config)
    images, points, labels, boxes = make_inputs()
    variables = make_variables(config)
    apply = jax.jit(model.apply)
    prompts_of = {
        (False, False): None,
        (True, False): Prompts(points, labels),
        (False, True): Prompts(None, None, boxes),
        (True, True): Prompts(points, labels, boxes),
    }
    alone = {kind: apply(variables, images, prompts) for kind, prompts in prompts_of.items()}
    count = points.shape[1]
    for kinds in (((False, False), (True, False)), ((False, True), (True, True))):
        given = jnp.array([[some] * count + [box] for some, box in kinds])
        mixed = apply(variables, images, Prompts(points, labels, boxes, given))
        for i, kind in enumerate(kinds):
            # Sums with more terms, some of them 0, may be rounded in another order.
            np.testing.assert_allclose(mixed[i], alone[kind][i], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="given"):
        apply(variables, images, Prompts(points, labels, None, given))


def test_init_variables_follows_torchs_distributions():
    params = init_variables(phantom_config().model, jax.random.key(1))["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, fan_in in {
        "backbone/down4/nConvs_1/conv": 48 * 9,
        "image_encoder/blocks_0/attn/qkv": 48,
        "mask_decoder/up4/up": 32 * 4,
        "mask_decoder/output_hypernetworks_mlps/layers_0": 32,
    }.items():
        for leaf in ("kernel", "bias"):
            array = flat[f"{path}/{leaf}"]
            assert float(jnp.abs(array).max()) <= fan_in**-0.5
        kernel = flat[f"{path}/kernel"]
        # The standard deviation of a uniform distribution is its bound over the square root of 3.
        np.testing.assert_allclose(kernel.std() * (3 * fan_in) ** 0.5, 1.0, atol=0.03)
    assert not flat["image_encoder/pos_embed"].any()
    np.testing.assert_allclose(flat["mask_decoder/mask_tokens"].std(), 1.0, atol=0.15)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "vit_x"),
        ("name", "nounet"),
        ("num_skips", 5),
        ("image_size", 225),
        ("dtype", "int8"),
        ("num_classes", 1),
    ],
)
def test_make_model_names_invalid_setting(field, value):
    with pytest.raises(UsageError, match=f"config.model.{field}: got {value!r}"):
        make_model(tiny(**{field: value}))


def test_model_rejects_points_without_labels():
    model = make_model(tiny())
    images, points, *_ = make_inputs()
    with pytest.raises(ValueError, match="point_labels"):
        jax.eval_shape(model.init, jax.random.key(0), images, Prompts(points))


@pytest.mark.parametrize("head_dim", [4, 8])
def test_attention_equals_its_definition_with_gradients(head_dim):
    """Compares every pair of tokens, with 2 s above one head's width and below the other's."""
    s, heads = 3, 2
    d, t = heads * head_dim, s * s
    x, above = (jax.random.normal(jax.random.key(i), (2, s, s, d)) for i in (0, 2))
    attention = Attention(heads, jnp.float32)
    params = attention.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    row, column = np.divmod(np.arange(t), s)
    rows, columns = (y[:, None] - y[None] + s - 1 for y in (row, column))

    def plain(params, x):
        qkv = x.reshape(2, t, d) @ params["qkv"]["kernel"] + params["qkv"]["bias"]
        q, k, v = jnp.moveaxis(qkv.reshape(2, t, 3, heads, head_dim), 2, 0)
        relative = params["rel_pos_h"][rows] + params["rel_pos_w"][columns]
        logits = jnp.einsum("bqnd,bknd->bnqk", q, k) * head_dim**-0.5
        logits += jnp.einsum("bqnd,qkd->bnqk", q, relative)
        y = jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(logits), v).reshape(2, s, s, d)
        return y @ params["proj"]["kernel"] + params["proj"]["bias"]

    def layer(params, x):
        return attention.apply({"params": params}, x)

    expected, expected_grads = output_and_gradients(plain, (params, x), above)
    found, found_grads = output_and_gradients(layer, (params, x), above)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # float32 sums of 18 numbers
    pairs = zip(jax.tree.leaves(found_grads), jax.tree.leaves(expected_grads), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-5 * float(abs(b).max()))
