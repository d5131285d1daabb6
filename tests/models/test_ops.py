"""Forms equal their references, and a program contains its platform's forms only."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo

from benchmarks.hlo import products
from usam_jax.models import ops
from usam_jax.models.common import layers
from usam_jax.models.common.layers import ConvUnit
from usam_jax.models.common.up_block import UpBlock
from usam_jax.models.ops import (
    activation,
    attention,
    conv,
    cpu,
    cpu_attention,
    cpu_conv,
    gpu,
    linear,
    norm,
)
from usam_jax.models.sam.image_encoder import Block
from usam_jax.utils.mesh import batch_sharding, make_mesh, replicated

FORMS = {
    "matmul": (linear.matmul, cpu.matmul),
    "relu": (activation.relu, cpu.relu),
    "gelu": (activation.gelu, cpu.gelu),
    "normalise": (norm.normalise, cpu.normalise),
    "max_pool": (conv.max_pool, cpu_conv.max_pool),
    "conv3d": (conv.conv3d, cpu_conv.conv3d),
    "depthwise_conv": (conv.depthwise_conv, cpu_conv.depthwise_conv),
    "up_conv": (conv.up_conv, cpu_conv.up_conv),
    "up_concat_conv": (conv.up_concat_conv, cpu_conv.up_concat_conv),
    "relative_attention": (attention.relative_attention, cpu_attention.relative_attention),
    "self_attention": (attention.self_attention, cpu_attention.self_attention),
}

GPU_FORMS = {
    "gelu": gpu.gelu,
    "normalise": gpu.normalise,
    "up_concat_conv": gpu.up_concat_conv,
    "relative_attention": gpu.relative_attention,
}


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * recipe.normal(f"ops {shape}", shape)


def distinct(*shape: int) -> np.ndarray:
    """Eighths that are all different and exact in bfloat16, so that no maximum is shared."""
    numbers = np.argsort(recipe.normal("distinct", shape).ravel()) - 100
    return (numbers / 8).astype(np.float32).reshape(shape)


def up_inputs(channels: int, skip_channels: int) -> tuple:
    skip = normal(2, 6, 10, skip_channels) if skip_channels else None
    kernel = normal(3, 3, 6 + skip_channels, 7, scale=0.2)
    x, up = normal(2, 3, 5, channels), normal(2, 2, channels, 6, scale=0.3)
    return x, skip, up, normal(6), kernel, normal(7)


def attention_inputs(side: int, channels: int) -> tuple:
    q, k, v = (recipe.normal(f"ops {name}", (2, side * side, 3, channels)) for name in "qkv")
    tables = (normal(2 * side - 1, channels, scale=0.3) for _ in range(2))
    return (q, k, v, *tables)


def window_inputs() -> tuple:
    q, k, v = (recipe.normal(f"ops {name}", (6, 4, 2, 8)) for name in "qkv")
    return q, k, v, normal(3, 2, 4, 4)


def few_keys_inputs() -> tuple:
    q, k, v, _ = window_inputs()
    return q, k[:, :3], v[:, :3]


CASES = {
    "matmul": ("matmul", (normal(2, 3, 4), normal(4, 5)), {}),
    "relu": ("relu", (normal(3, 40),), {}),
    "gelu": ("gelu", (3 * normal(3, 40),), {}),
    "normalise channels": (
        "normalise",
        (3 * normal(2, 3, 4, 5) + 1, normal(5), normal(1, 5)[0]),
        {"axes": (3,), "epsilon": 1e-6},
    ),
    "normalise groups": (
        "normalise",
        (3 * normal(2, 3, 4, 2, 5) + 1, normal(2, 5), normal(2, 5)[::-1]),
        {"axes": (1, 2, 4), "epsilon": 1e-6},
    ),
    "normalise batch": (
        "normalise",
        (3 * normal(2, 3, 4, 5) + 1, normal(5), normal(1, 5)[0]),
        {"axes": (0, 1, 2), "epsilon": 1e-5},
    ),
    "max_pool": ("max_pool", (distinct(2, 4, 6, 3),), {}),
    "max_pool 3x3": ("max_pool", (distinct(2, 6, 7, 2),), {"window": 3}),
    "conv3d": (
        "conv3d",
        (normal(2, 3, 4, 5, 2), normal(5, 3, 3, 2, 4)),
        {"stride": (1, 1, 1), "padding": ((2, 2), (1, 1), (1, 1))},
    ),
    "conv3d with stride": (
        "conv3d",
        (normal(2, 5, 4, 7, 2), normal(3, 2, 3, 2, 4)),
        {"stride": (2, 1, 3), "padding": ((1, 0), (0, 1), (2, 1))},
    ),
    "depthwise_conv": ("depthwise_conv", (normal(2, 4, 5, 3), normal(3, 3, 1, 3)), {}),
    "up_conv": ("up_conv", (normal(2, 3, 5, 4), normal(2, 2, 4, 6), normal(6)), {}),
    "up_concat_conv joined": ("up_concat_conv", up_inputs(4, 2), {}),
    "up_concat_conv joined, no skip": ("up_concat_conv", up_inputs(4, 0), {}),
    "up_concat_conv apart": ("up_concat_conv", up_inputs(16, 2), {}),
    "up_concat_conv apart, no skip": ("up_concat_conv", up_inputs(16, 0), {}),
    # A CPU adds the bias inside the product if 2 s <= c.
    "relative_attention large map": ("relative_attention", attention_inputs(4, 4), {}),
    "relative_attention small map": ("relative_attention", attention_inputs(4, 8), {}),
    "relative_attention one token": ("relative_attention", attention_inputs(1, 8), {}),
    "self_attention biased": ("self_attention", window_inputs(), {}),
    "self_attention": ("self_attention", (*window_inputs()[:3], None), {}),
    "self_attention fewer keys": ("self_attention", (*few_keys_inputs(), None), {}),
}
# Of the largest number of each array. float32: sums of some hundred products in another order.
# bfloat16 keeps 8 bits (0.004): several roundings of numbers that partly cancel (0.022 at most).
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}


def assert_form_equals_reference(case: str, dtype: str, form) -> None:
    """Compare values and gradients."""
    name, inputs, static = CASES[case]
    stays_float32 = {
        "normalise": (1, 2),
        "relative_attention": (3, 4),
        "self_attention": (3,),
    }.get(name, ())
    inputs = [
        None if x is None else jnp.asarray(x, "float32" if i in stays_float32 else dtype)
        for i, x in enumerate(inputs)
    ]

    def run(form):
        found, vjp = jax.vjp(functools.partial(form, **static), *inputs)
        above = jax.tree.map(lambda y: jnp.asarray(recipe.normal("above", y.shape), y.dtype), found)
        return found, vjp(above)

    expected, found = (jax.jit(functools.partial(run, x))() for x in (FORMS[name][0], form))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * max(1, abs(b).max()))


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_cpu_form_equals_reference(case, dtype):
    assert_form_equals_reference(case, dtype, FORMS[CASES[case][0]][1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [x for x, (name, *_) in CASES.items() if name in GPU_FORMS])
def test_gpu_form_equals_reference(case, dtype, monkeypatch):
    """Attention by XLA in place of cuDNN, with the inputs that cuDNN gets."""
    plain = functools.partial(jax.nn.dot_product_attention, scale=1.0)
    monkeypatch.setattr(gpu, "by_cudnn", plain)
    monkeypatch.setattr(gpu, "cudnn_refusal", lambda *_: "")
    monkeypatch.setattr(gpu, "MIN_PIXELS", 0)
    assert_form_equals_reference(case, dtype, GPU_FORMS[CASES[case][0]])


@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_variance_in_one_pass_errs_less_than_its_input(mean):
    exact = mean + np.asarray(normal(64, 64, 5), np.float64)
    x = jnp.asarray(exact, jnp.bfloat16)
    scale = {"scale": jnp.ones(5), "bias": jnp.zeros(5), "axes": (0, 1), "epsilon": 1e-5}
    one, two = (np.asarray(f(x, **scale)[2]) for f in (gpu.normalise, norm.normalise))
    rounding = abs(np.asarray(x, np.float64).var((0, 1)) - exact.var((0, 1))).max()
    assert abs(one - two).max() <= max(0.1 * rounding, 1e-6)


def test_cases_cover_every_op_with_a_cpu_form():
    forms = (cpu, cpu_attention, cpu_conv)
    one_form = {"convolve", "pixel_shuffle"}
    chosen = {x for x in ops.__all__ if any(hasattr(form, x) for form in forms)} - one_form
    assert chosen == FORMS.keys() == {name for name, *_ in CASES.values()}
    assert GPU_FORMS.keys() == {name for name in ops.__all__ if hasattr(gpu, name)}
    for name, (reference, _) in FORMS.items():
        assert inspect.unwrap(getattr(ops, name)) is inspect.unwrap(reference)


@pytest.mark.optimised
def test_relu_propagates_nan():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.nan, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(cpu.relu(x), nn.relu(x))
    gradients = (jax.vjp(f, x)[1](jnp.ones(7))[0][:4] for f in (cpu.relu, nn.relu))
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_relative_to_absolute_picks_each_keys_offset(side):
    offsets = jnp.broadcast_to(jnp.arange(side - 1.0, -side, -1), (2, side, 2 * side - 1))
    i, k = np.ogrid[:side, :side]
    expected = np.broadcast_to(i - k, (2, side, side))
    np.testing.assert_array_equal(cpu_attention.relative_to_absolute(offsets), expected)


class EveryOp(nn.Module):
    """A small U with an attention block at its bottom."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        skip = ConvUnit(4, self.dtype, grey=True)(x, True)
        x = ops.max_pool(skip)
        x = Block(num_heads=2, window=0, dtype=self.dtype)(ConvUnit(8, self.dtype)(x, True))
        x = UpBlock(6, self.dtype)(x, skip, True)
        bias = self.param("bias", nn.initializers.zeros, (2,)).astype(self.dtype)
        kernel = self.param("kernel", nn.initializers.ones, (2, 2, 6, 2)).astype(self.dtype)
        return ops.up_conv(x, kernel, bias)


def gradient_function(dtype="float32", transform=lambda f: f):
    """A loss of `EveryOp` with its gradients, and abstract arguments."""
    model, x = EveryOp(jnp.dtype(dtype)), jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.dtype(dtype))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        apply = transform(lambda v, x: model.apply(v, x, mutable="batch_stats")[0])
        return jnp.square(apply(variables, x).astype(jnp.float32)).mean()

    return jax.value_and_grad(loss), (variables["params"], variables["batch_stats"], x)


def lower(platforms, dtype="float32", transform=lambda f: f) -> str:
    function, arguments = gradient_function(dtype, transform)
    return jax.export.export(jax.jit(function), platforms=platforms)(*arguments).mlir_module()


def lower_with(monkeypatch, position: int, platform: str) -> str:
    """`EveryOp` if each op is its reference (0) or its form for CPUs (1) without any choice."""
    with monkeypatch.context() as patch:
        for name, forms in FORMS.items():
            patch.setattr(ops, name, forms[position])
        return lower([platform])


@pytest.mark.parametrize("transform", [lambda f: f, jax.checkpoint], ids=["plain", "remat"])
@pytest.mark.parametrize(("platform", "position"), [("cuda", 0), ("tpu", 0), ("cpu", 1)])
def test_program_contains_only_its_platforms_forms(platform, position, transform, monkeypatch):
    own, other = (
        set(products(lower_with(monkeypatch, i, platform))) for i in (position, 1 - position)
    )
    assert other - own  # or the test could not tell them apart
    assert set(products(lower([platform], transform=transform))) == own


@pytest.mark.parametrize(("platform", "axes"), [("cpu", "0, 1"), ("cuda", "0, 1, 2")])
def test_convolutions_of_windows_are_in_2d_on_a_cpu_alone(platform, axes):
    layer = layers.conv(4, 2, 3, jnp.float32, "conv", dims=3)
    windows = jax.ShapeDtypeStruct((1, 3, 4, 5, 2), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), windows)
    exported = jax.export.export(jax.jit(layer.apply), platforms=[platform])(variables, windows)
    found = re.findall(r"dim_numbers = \[b, ([\d, ]+), f\]", exported.mlir_module())
    assert found == [axes]


@pytest.mark.optimised
@pytest.mark.parametrize("num_devices", [1, 2])
def test_compiled_cpu_program_makes_no_choice(num_devices):
    """Also with the batch sharded, since the partitioner runs before XLA removes conditionals."""
    function, (params, stats, x) = gradient_function()
    mesh = make_mesh(num_devices)
    x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
    params, stats = (
        jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=replicated(mesh)), z)
        for z in (params, stats)
    )
    compiled = jax.jit(function).lower(params, stats, x).compile()
    assert "conditional(" not in compiled.as_text()


@pytest.mark.optimised
def test_program_for_two_platforms_has_no_choice_on_a_cpu():
    function, shapes = gradient_function()
    arguments = jax.tree.map(lambda x: 1 + normal(*x.shape, scale=0.1), shapes)
    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda"))(*shapes)
    compiled = jax.jit(exported.call).lower(*arguments).compile()
    assert "conditional(" not in compiled.as_text()
    for a, b in zip(
        *(jax.tree.leaves(f(*arguments)) for f in (compiled, jax.jit(function))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, float(abs(b).max())))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_bfloat16_products_are_bfloat16_on_each_platform(platform):
    found = products(lower([platform], "bfloat16"))
    assert {x.multiplied for x in found} == {("bf16", "bf16")}


@pytest.fixture
def with_cudnn(monkeypatch):
    """JAX believes that cuDNN is installed, so its attention can be lowered without a GPU."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    gpu.cudnn_refusal.cache_clear()
    with gpu.forms(True):
        yield
    gpu.cudnn_refusal.cache_clear()


def lowered_gradient(platform: str, dtype: str = "bfloat16") -> str:
    function, arguments = gradient_function(dtype)
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_gpu_forms_are_in_programs_for_cuda_alone(with_cudnn):
    text = lowered_gradient("cuda")
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    assert {x.multiplied for x in products(text)} == {("bf16", "bf16")}
    for platform in ("cpu", "tpu"):
        text = lowered_gradient(platform)
        with gpu.forms(False):
            plain = lowered_gradient(platform)
        assert "cudnn" not in text
        assert products(text) == products(plain)


def test_gpu_forms_are_not_traced_without_a_gpu():
    assert not gpu.wanted()
    assert "cudnn" not in lowered_gradient("cuda")


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 16, 2, 64), "float32", "got float32, expected bfloat16 or float16"),
        ((1, 16, 2, 192), "bfloat16", "got 192 channels a head with those of the bias"),
        ((1, 16, 2, 64), "bfloat16", ""),
        ((1, 16, 2, 60), "bfloat16", "multiple of 8"),
    ],
)
def test_cudnn_refusal_names_the_reason(shape, dtype, reason, with_cudnn):
    found = gpu.cudnn_refusal(shape, dtype)
    assert reason in found and bool(found) == bool(reason)


def test_attention_without_cudnn_says_so_once(capsys):
    q, k, v, *tables = (jnp.asarray(x) for x in attention_inputs(2, 8))
    gpu.say_once.cache_clear()
    for _ in range(2):
        found = gpu.relative_attention(q, k, v, *tables)
    np.testing.assert_array_equal(found, attention.relative_attention(q, k, v, *tables))
    assert capsys.readouterr().err.count("attention without cuDNN, which is slower") == 1
