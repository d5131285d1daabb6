"""The forms of pooling and convolutions that XLA:CPU compiles to faster code: see `cpu`."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from usam_jax.models.ops.conv import convolve, pixel_kernel, pixel_shuffle, same_padding
from usam_jax.models.ops.cpu import matmul


def max_pool(x: Float[Array, "b h w d"], *, window: int = 2) -> Float[Array, "b i j d"]:
    """Maximum of each window with stride 2, as maxima of slices.

    The gradient of a window writes the indices of all pixels (with `gelu`: step 1.01 to 1.05 s ->
    0.96 to 1.03 s a slice). Of equal maxima each gets a share of the gradient, not the first one
    all of it.
    """
    b, h, w, d = x.shape
    if window != 2:
        rows, columns = (2 * ((n - window) // 2) + 1 for n in (h, w))
        x = reduce(jnp.maximum, (x[:, i : i + rows : 2] for i in range(window)))
        return reduce(jnp.maximum, (x[:, :, i : i + columns : 2] for i in range(window)))
    x = x.reshape(b, h // 2, 2, w // 2, 2, d)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def conv3d(
    x: Float[Array, "b z y x d"],
    kernel: Float[Array, "k l m d e"],
    *,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "b o i j e"]:
    """`conv.conv3d` as one convolution in 2-D, whose channels are those of all taps along z.

    XLA:CPU has no fast convolution in 3-D (5x5x5 on 8 slices of 112x112, from 16 to 32 channels:
    329 ms forward and 1423 ms with gradients -> 82 ms and 236 ms). The joined taps take as many
    times the memory of `x` as the kernel has taps along z, in training until the backward pass.
    """
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    taps, step = kernel.shape[0], stride[0]
    b, z, *plane, d = x.shape
    out = (z - taps) // step + 1
    slices = [x[:, i : i + step * (out - 1) + 1 : step] for i in range(taps)]
    joined = jnp.concatenate(slices, axis=-1).reshape(b * out, *plane, taps * d)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], taps * d, -1)
    y = jax.lax.conv_general_dilated(
        joined, flat, stride[1:], padding[1:], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(b, out, *y.shape[1:])


@jax.custom_vjp
def depthwise_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l 1 d"]
) -> Float[Array, "b h w d"]:
    """`conv.depthwise_conv` as a sum, in float32, over the kernel's taps of shifted maps.

    XLA has no fast convolution by groups, and the kernel's gradient is a loop over the taps since
    XLA takes five times as long for all of them at once, and seconds to compile (7x7 on two maps of
    56x56 with 96 channels, one core: 82 ms forward and 262 ms with gradients -> 3 ms and 27 ms).
    """
    _, h, w, _ = x.shape
    wide = pad_same(x, kernel).astype(jnp.float32)
    taps = (
        wide[:, i : i + h, j : j + w] * kernel[i, j, 0] for i, j in np.ndindex(kernel.shape[:2])
    )
    return reduce(jnp.add, taps).astype(x.dtype)


def pad_same(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l ..."]
) -> Float[Array, "b i j d"]:
    """Zeros around a map with which a convolution keeps its size."""
    rows, columns = same_padding(kernel)
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _depthwise_conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_conv_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    padded = pad_same(x, kernel)

    def of_tap(tap: Array) -> Array:
        shifted = jax.lax.dynamic_slice(padded, (0, *tap, 0), x.shape)
        return (shifted.astype(jnp.float32) * gradient).sum((0, 1, 2))

    taps = jnp.asarray(list(np.ndindex(kernel.shape[:2])))
    d_kernel = jax.lax.map(of_tap, taps).reshape(kernel.shape).astype(kernel.dtype)
    return depthwise_conv(gradient, kernel[::-1, ::-1]), d_kernel


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)


def up_conv(
    x: Float[Array, "b *s d"], kernel: Float[Array, "*m d e"], bias: Float[Array, " e"]
) -> Float[Array, "b *o e"]:
    """`conv.up_conv` with this module's `matmul`."""
    return pixel_shuffle(matmul(x, pixel_kernel(kernel)), kernel.shape[:-2]) + bias


def up_concat_conv(
    x: Float[Array, "b h w d"],
    skip: Float[Array, "b i j s"] | None,
    up_kernel: Float[Array, "m n d e"],
    up_bias: Float[Array, " e"],
    kernel: Float[Array, "k l c f"],
    bias: Float[Array, " f"],
) -> Float[Array, "b i j f"]:
    """`conv.up_concat_conv` with both convolutions of `x` joined if the map is large enough.

    No map is made between them (the four of a decoder: 104 ms forward and 390 ms with gradients ->
    69 ms and 276 ms).
    """
    if not joins(x, up_kernel, kernel):
        x = up_conv(x, up_kernel, up_bias)
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        return convolve(x, kernel, padding=same_padding(kernel)) + bias
    upper, lower = kernel[:, :, : up_bias.size], kernel[:, :, up_bias.size :]
    x = up_conv_conv(x, up_kernel, up_bias, upper)
    # End in the sum of both maps: if the bias came last, XLA would shuffle pixels for each use.
    return x + (bias if skip is None else convolve(skip, lower, padding=1) + bias)


def joins(
    x: Float[Array, "b h w d"], up_kernel: Float[Array, "m n d e"], kernel: Float[Array, "k l c f"]
) -> bool:
    """Whether both convolutions of `x` can be joined, and joining their kernels pays."""
    _, h, w, d = x.shape
    joinable = (up_kernel.shape[:2], kernel.shape[:2]) == ((2, 2), (3, 3))
    return joinable and h * w > d  # else joining the kernels would take as long as it saves


def up_conv_conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "2 2 d e"],
    bias: Float[Array, " e"],
    second: Float[Array, "3 3 e f"],
) -> Float[Array, "b i j f"]:
    """`up_conv`, then a zero-padded 3x3 convolution, as one convolution of `x`.

    Both are linear, so their kernels join at each call into one transposed 4x4 convolution with
    stride 2, which takes 4 products for each pixel and pair of channels instead of 9 and those of
    `up_conv`. Tap s of the first and tap u of the second make tap 1 - s + u. Rows i-1 and i of the
    input give rows 2i-1 (taps 3 and 1) and 2i (taps 2 and 0) of the output, so 2x2 inputs give 2x2
    outputs. The first bias ends at the border of the map, so it is the kernel of a channel of ones.
    """
    b, h, w, _ = x.shape
    first = jnp.concatenate([kernel[::-1, ::-1], jnp.broadcast_to(bias, (2, 2, 1, bias.size))], 2)
    both = joined_kernel(first, second)
    x = jnp.concatenate([x, jnp.ones((b, h, w, 1), x.dtype)], axis=-1)
    # Pad apart: XLA has slow gradients for a convolution whose output is larger than its input.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return pixel_shuffle(convolve(x, both, padding=0), (2, 2))[:, 1:-1, 1:-1]


def joined_kernel(
    first: Float[Array, "2 2 d e"], second: Float[Array, "3 3 e f"]
) -> Float[Array, "2 2 d g"]:
    """The kernel of `up_conv_conv`: d channels to 2x2 pixels of f channels each, g = 4 f."""
    d, f = first.shape[2], second.shape[-1]
    taps = jnp.einsum("stde,uvef->stuvdf", first, second)
    both = jnp.zeros((4, 4, d, f), first.dtype)
    for s, t in np.ndindex(2, 2):
        both += jnp.pad(taps[s, t], ((1 - s, s), (1 - t, t), (0, 0), (0, 0)))
    both = both.reshape(2, 2, 2, 2, d, f)[:, ::-1, :, ::-1]  # Row of input, of output; columns.
    return both.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, d, 4 * f)
