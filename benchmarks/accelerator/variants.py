"""Other forms of the model's operations.

After a change of usam_jax/models adapt the replacements below; tests/benchmarks/test_accelerator.py
checks that each of them still changes the traced program.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from usam_jax.models import ops
from usam_jax.models.common import conv_encoder, layers, up_block
from usam_jax.models.ops import attention, conv, cpu, cpu_attention, cpu_conv, gpu, norm
from usam_jax.models.sam import image_encoder
from usam_jax.training import optimizer

DTYPE = jnp.bfloat16
Change = tuple[Any, str, Any]  # a module, the name in it, the replacement
Case = tuple[nn.Module, list[Any]]  # a part of the model and its inputs
UNCHANGED = "unchanged"


@contextlib.contextmanager
def changed(changes: list[Change]) -> Iterator[None]:
    """Replace names of modules inside the context. Raises AttributeError if a name is missing."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def random(seed: int, *shape: int) -> Any:
    return jax.random.normal(jax.random.key(seed), shape, DTYPE)


# Attention: a block of the image encoder.


def attention_block(batch: int, dry: bool) -> Case:
    width, heads, side = (48, 2, 7) if dry else (768, 12, 14)
    return image_encoder.Block(heads, side, DTYPE), [random(1, batch, side, side, width)]


def attention_form(implementation: str, form: str) -> list[Change]:
    """`ops.relative_attention` by `jax.nn.dot_product_attention`, with its bias in another form."""

    def relative_attention(q: Any, k: Any, v: Any, rel_pos_h: Any, rel_pos_w: Any) -> Any:
        b, t, n, c = q.shape
        s = math.isqrt(t)
        offsets = jnp.arange(s)[:, None] - jnp.arange(s)[None] + s - 1
        table_h, table_w = (table[offsets].astype(q.dtype) for table in (rel_pos_h, rel_pos_w))
        grid = q.reshape(b, s, s, n, c)
        bias_h = jnp.einsum("byxnc,ykc->byxnk", grid, table_h).reshape(b, t, n, s)
        bias_w = jnp.einsum("byxnc,xkc->byxnk", grid, table_w).reshape(b, t, n, s)
        q, bias = q * c**-0.5, None
        if form == "bias in the product":  # a key's row and column as channels, 32 at a time
            one_hot = jnp.eye(s, dtype=k.dtype)
            places = jnp.concatenate([jnp.repeat(one_hot, s, 0), jnp.tile(one_hot, (s, 1))], -1)
            places = jnp.broadcast_to(places[None, :, None], (b, t, n, 2 * s))
            fill = [(0, 0)] * 3 + [(0, -(c + 2 * s) % 32)]
            q = jnp.pad(jnp.concatenate([q, bias_h, bias_w], -1), fill)
            k = jnp.pad(jnp.concatenate([k, places], -1), fill)
            v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - c)])
        elif form == "bias as an array":
            rows, columns = (x.swapaxes(1, 2) for x in (bias_h, bias_w))
            bias = (rows[..., None] + columns[..., None, :]).reshape(b, n, t, t)
        attend: Any = jax.nn.dot_product_attention
        return attend(q, k, v, bias, scale=1.0, implementation=implementation)[..., :c]

    return [(ops, "relative_attention", relative_attention)]


def tanh_gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=True)


ATTENTION: dict[str, list[Change]] = {
    UNCHANGED: [],
    "cuDNN, bias in the product": attention_form("cudnn", "bias in the product"),
    "cuDNN, bias as an array": attention_form("cudnn", "bias as an array"),
    "XLA's, bias in the product": attention_form("xla", "bias in the product"),
    "XLA's, bias as an array": attention_form("xla", "bias as an array"),
    "cuDNN, no bias (a bound)": attention_form("cudnn", "no bias"),
    "the form for CPUs": [(ops, "relative_attention", cpu_attention.relative_attention)],
    "the reference": [(ops, "relative_attention", attention.relative_attention)],
    "tanh GELU (another function)": [(ops, "gelu", tanh_gelu)],
}


# Up-convolution: the decoder's last block, to full size.


def up_block_case(batch: int, dry: bool) -> Case:
    side, channels = (8, 8) if dry else (112, 32)
    x = random(1, batch, side, side, channels)
    skip = random(2, batch, 2 * side, 2 * side, channels)
    return up_block.UpBlock(channels, DTYPE), [x, skip]


def summed_convolutions(
    x: Any, skip: Any, up_kernel: Any, up_bias: Any, kernel: Any, bias: Any
) -> Any:
    """`ops.up_concat_conv` with a convolution of each map instead of their concatenation."""
    upper, lower = kernel[:, :, : up_bias.size], kernel[:, :, up_bias.size :]
    x = ops.convolve(ops.up_conv(x, up_kernel, up_bias), upper, padding=1)
    return x + (bias if skip is None else ops.convolve(skip, lower, padding=1) + bias)


def joined_without_ones(
    x: Any,
    skip: Any,
    up_kernel: Any,
    up_bias: Any,
    kernel: Any,
    bias: Any,
    *,
    padded_first: bool = False,
) -> Any:
    """The joined form for CPUs with the bias as a map of its own: channels stay a multiple of 8.

    `padded_first` keeps the padding out of the convolution: if it is folded in, XLA turns the
    kernel's gradient into a convolution whose window is the whole map.
    """
    _, h, w, d = x.shape
    upper, lower = kernel[:, :, : up_bias.size], kernel[:, :, up_bias.size :]
    f = upper.shape[-1]
    taps = jnp.einsum("stde,uvef->stuvdf", up_kernel[::-1, ::-1], upper)
    both = jnp.zeros((4, 4, d, f), x.dtype)
    for s in range(2):
        for t in range(2):
            both += jnp.pad(taps[s, t], ((1 - s, s), (1 - t, t), (0, 0), (0, 0)))
    both = both.reshape(2, 2, 2, 2, d, f)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    if padded_first:
        x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    x = ops.convolve(x, both.reshape(2, 2, d, 4 * f), padding=0 if padded_first else 1)
    empty = jnp.zeros((1, h, w, 0), x.dtype)
    of_bias = cpu_conv.up_conv_conv(empty, up_kernel[:, :, :0], up_bias, upper)
    x = conv.pixel_shuffle(x, (2, 2))[:, 1:-1, 1:-1] + of_bias
    return x + (bias if skip is None else ops.convolve(skip, lower, padding=1) + bias)


UP_CONVOLUTION: dict[str, list[Change]] = {
    UNCHANGED: [],
    "the reference": [(ops, "up_concat_conv", conv.up_concat_conv)],
    "two convolutions summed": [(ops, "up_concat_conv", summed_convolutions)],
    "joined, the form for CPUs": [(ops, "up_concat_conv", cpu_conv.up_concat_conv)],
    "joined, without the channel of ones": [(ops, "up_concat_conv", joined_without_ones)],
    "joined, without the channel of ones, padded first": [
        (ops, "up_concat_conv", functools.partial(joined_without_ones, padded_first=True))
    ],
}


# BatchNorm: a conv unit at full size.


def conv_unit(batch: int, dry: bool) -> Case:
    side, channels = (16, 8) if dry else (224, 32)
    return conv_encoder.ConvUnit(channels, DTYPE), [random(1, batch, side, side, channels)]


def one_pass_normalise(
    x: Any, scale: Any, bias: Any, *, axes: tuple[int, ...], epsilon: float
) -> Any:
    """`gpu.normalise` with both moments from one pass for any dtype."""
    return cpu.normalise_by(gpu.one_pass, x, scale, bias, axes, epsilon)


class NoNorm(nn.Module):
    """BatchNorm's parameters without its computation."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for name, start in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros)):
            self.param(name, start, x.shape[-1:])
        return x


BATCH_NORM: dict[str, list[Change]] = {
    UNCHANGED: [],
    "the reference": [(ops, "normalise", norm.normalise)],
    "gradient written out, the form for CPUs": [(ops, "normalise", cpu.normalise)],
    "mean and variance in one pass": [(ops, "normalise", one_pass_normalise)],
    "no norm (a bound)": [(layers, "BatchNorm", NoNorm)],
}


# The optimiser's update of all parameters.


class FlatOptax:
    """optax, but with adamw on one array per parameter group."""

    def __getattr__(self, name: str) -> Any:
        return self.flat_adamw if name == "adamw" else getattr(optax, name)

    @staticmethod
    def flat_adamw(*arguments: Any, **options: Any) -> Any:
        return optax.flatten(optax.adamw(*arguments, **options))


UPDATE: dict[str, list[Change]] = {
    UNCHANGED: [],
    "one array per group": [(optimizer, "optax", FlatOptax())],
}

# Variants by the name of their part: a case of it, its variants, and those of the same function.
PARTS: dict[str, tuple[Callable[[int, bool], Case], dict[str, list[Change]], set[str]]] = {
    "a block of the image encoder": (
        attention_block,
        ATTENTION,
        {x for x in ATTENTION if ("bias " in x and "bound" not in x) or x.startswith("the ")},
    ),
    "up1": (up_block_case, UP_CONVOLUTION, set(UP_CONVOLUTION)),
    "a conv unit at full size": (conv_unit, BATCH_NORM, set(BATCH_NORM) - {"no norm (a bound)"}),
}
# What a dry run takes into the whole step, since times of tiny models choose nothing.
DRY_CHOICE = {
    "a block of the image encoder": "XLA's, bias as an array",
    "up1": "joined, without the channel of ones, padded first",
    "a conv unit at full size": "mean and variance in one pass",
}
