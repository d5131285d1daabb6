"""Other forms of parts of the model: the only module here that names the model's inner functions.

After a change of usam_jax/models adapt the replacements below; tests/benchmarks/test_accelerator.py
checks that each of them still changes the traced program.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from usam_jax.models.common import conv_encoder, layers, up_block
from usam_jax.models.sam import attention, image_encoder, mask_decoder
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


def fused_attention(implementation: str, form: str) -> list[Change]:
    """Attention by jax.nn.dot_product_attention, which gets q (scaled), k, v and the biases."""

    def keep_operands(q: Any, bias: Any, k: Any) -> Any:
        return q, bias, k

    def attend(saved: Any, v: Any) -> Any:
        q, bias, k = saved
        full, width = None, v.shape[-1]
        if form == "bias in the product":  # the channels of the model's own form, padded to 32
            own = attention.own_places(k)
            k = jnp.concatenate([k, jnp.broadcast_to(own, (*k.shape[:2], *own.shape))], -1)
            q = jnp.concatenate([q, bias], -1)
            fill = -q.shape[-1] % 32
            q, k = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, fill))) for x in (q, k))
            v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, q.shape[-1] - width)))
        elif form == "bias as an array":
            rows, columns = jnp.split(bias, 2, axis=-1)
            full = rows[..., None] + columns[..., None, :]
            full = full.reshape(*rows.shape[:3], -1).astype(q.dtype)
        q, k, v = (x.astype(v.dtype).swapaxes(1, 2) for x in (q, k, v))
        out = jax.nn.dot_product_attention(q, k, v, full, scale=1.0, implementation=implementation)
        return out.swapaxes(1, 2)[..., :width]

    return [(attention, "compare_biased", keep_operands), (attention, "weigh", attend)]


def tanh_gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=True)


ATTENTION: dict[str, list[Change]] = {
    UNCHANGED: [],
    "cuDNN, bias in the product": fused_attention("cudnn", "bias in the product"),
    "cuDNN, bias as an array": fused_attention("cudnn", "bias as an array"),
    "XLA's, bias in the product": fused_attention("xla", "bias in the product"),
    "XLA's, bias as an array": fused_attention("xla", "bias as an array"),
    "cuDNN, no bias (a bound)": fused_attention("cudnn", "no bias"),
    "tanh GELU (another function)": [(image_encoder, "gelu", tanh_gelu)],
}


# Up-convolution: the decoder's last block, to full size.


def up_block_case(batch: int, dry: bool) -> Case:
    side, channels = (8, 8) if dry else (112, 32)
    x = random(1, batch, side, side, channels)
    skip = random(2, batch, 2 * side, 2 * side, channels)
    return mask_decoder.UpBlock(channels, DTYPE), [x, skip]


def split_up_conv_conv(x: Any, kernel: Any, bias: Any, second: Any) -> Any:
    """`up_conv_conv` as `up_conv` and a 3x3 convolution after it."""
    return up_block.convolve(up_block.up_conv(x, kernel, bias), second, 1)


class SplitUpConvUnit(nn.Module):
    """UpConvUnit as published: upsampled, concatenated, convolved."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any, skip: Any, up: Any, train: bool) -> Any:
        x = up_block.up_conv(x, *up)
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        x = layers.conv(self.features, x.shape[-1], 3, self.dtype, "conv")(x)
        return layers.relu(layers.BatchNorm(name="norm")(x, train))


fused_up_conv_conv = up_block.up_conv_conv


def fused_without_ones(
    x: Any, kernel: Any, bias: Any, second: Any, padded_first: bool = False
) -> Any:
    """`up_conv_conv` with the bias as a map of its own, so that channels stay a multiple of 8.

    `padded_first` keeps the padding out of the convolution: if it is folded in, XLA turns the
    kernel's gradient into a convolution whose window is the whole map.
    """
    b, h, w, d = x.shape
    f = second.shape[-1]
    taps = jnp.einsum("stde,uvef->stuvdf", kernel[::-1, ::-1], second)
    both = jnp.zeros((4, 4, d, f), x.dtype)
    for s in range(2):
        for t in range(2):
            both += jnp.pad(taps[s, t], ((1 - s, s), (1 - t, t), (0, 0), (0, 0)))
    both = both.reshape(2, 2, 2, 2, d, f)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    if padded_first:
        x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    patches = up_block.convolve(x, both.reshape(2, 2, d, 4 * f), 0 if padded_first else 1)
    patches = patches.reshape(b, h + 1, w + 1, 2, 2, f)
    empty = jnp.zeros((1, h, w, 0), x.dtype)
    of_bias = fused_up_conv_conv(empty, kernel[:, :, :0], bias, second)
    return up_block.pixel_shuffle(patches)[:, 1:-1, 1:-1] + of_bias


SPLIT_CONVOLUTIONS: list[Change] = [(up_block, "up_conv_conv", split_up_conv_conv)]


def split_convolutions() -> None:
    """Split the decoder's convolutions for the rest of this process, unless a lever is in place."""
    if up_block.up_conv_conv is fused_up_conv_conv:
        up_block.up_conv_conv = split_up_conv_conv


UP_CONVOLUTION: dict[str, list[Change]] = {
    UNCHANGED: [],
    "split, two convolutions summed": SPLIT_CONVOLUTIONS,
    "split, concatenated": [(mask_decoder, "UpConvUnit", SplitUpConvUnit)],
    "fused, without the channel of ones": [(up_block, "up_conv_conv", fused_without_ones)],
    "fused, without the channel of ones, padded first": [
        (up_block, "up_conv_conv", functools.partial(fused_without_ones, padded_first=True))
    ],
}


# BatchNorm: a conv unit at full size.


def conv_unit(batch: int, dry: bool) -> Case:
    side, channels = (16, 8) if dry else (224, 32)
    return conv_encoder.ConvUnit(channels, DTYPE), [random(1, batch, side, side, channels)]


def one_pass_forward(x: Any, scale: Any, bias: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    """`layers._normalise_forward` with mean and mean of squares from one pass over `x`."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(axes, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse * scale + bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse)


def one_pass_normalise() -> Callable[..., Any]:
    normalise = jax.custom_vjp(lambda *x: one_pass_forward(*x)[0], nondiff_argnums=(3, 4))
    normalise.defvjp(one_pass_forward, layers._normalise_backward)
    return normalise


class NoNorm(nn.Module):
    """BatchNorm's parameters without its computation."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for name, start in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros)):
            self.param(name, start, x.shape[-1:])
        return x


BATCH_NORM: dict[str, list[Change]] = {
    UNCHANGED: [],
    "mean and variance in one pass": [(layers, "normalise", one_pass_normalise())],
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
        {x for x in ATTENTION if "bias " in x},
    ),
    "up1": (up_block_case, UP_CONVOLUTION, set(UP_CONVOLUTION)),
    "a conv unit at full size": (conv_unit, BATCH_NORM, {"mean and variance in one pass"}),
}
# What a dry run takes into the whole step, since times of tiny models choose nothing.
DRY_CHOICE = {
    "a block of the image encoder": "XLA's, bias as an array",
    "up1": "fused, without the channel of ones, padded first",
    "a conv unit at full size": "mean and variance in one pass",
}
