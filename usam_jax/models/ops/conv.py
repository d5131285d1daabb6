"""Convolutions, pooling and upsampling of maps with channels last."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "k l d e"],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int],
) -> Float[Array, "b i j e"]:
    """Convolution with `padding` zeros on each side, along both axes or (h, w)."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        pair(stride),
        [(n, n) for n in pair(padding)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv3d(
    x: Float[Array, "b z y x d"],
    kernel: Float[Array, "k l m d e"],
    *,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "b o i j e"]:
    """Convolution of windows of slices with `padding` zeros before and after each axis."""
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def depthwise_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l 1 d"]
) -> Float[Array, "b h w d"]:
    """Convolution of each channel with its own kernel of odd size, zero-padded to keep the size."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(n, n) for n in same_padding(kernel)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of a size that is one for both axes or already two."""
    return (value, value) if isinstance(value, int) else value


def same_padding(kernel: Float[Array, "k l d e"]) -> tuple[int, int]:
    """Zeros on each side with which a kernel of odd size keeps the size of a map."""
    return kernel.shape[0] // 2, kernel.shape[1] // 2


def max_pool(x: Float[Array, "b h w d"], *, window: int = 2) -> Float[Array, "b i j d"]:
    """Maximum of each window, with stride 2 and without padding."""
    size, strides = (1, window, window, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, strides, "VALID")


def up_conv(
    x: Float[Array, "b *s d"], kernel: Float[Array, "*m d e"], bias: Float[Array, " e"]
) -> Float[Array, "b *o e"]:
    """Transposed convolution with the size of `kernel`, as in `nn.ConvTranspose`, as stride.

    Stride equals kernel size, so windows do not overlap and one matmul suffices.
    """
    return pixel_shuffle(x @ pixel_kernel(kernel), kernel.shape[:-2]) + bias


def pixel_kernel(kernel: Float[Array, "*m d e"]) -> Float[Array, "d f"]:
    """The matrix of a transposed convolution: channels to a window of pixels of e channels."""
    flipped = jnp.flip(kernel, range(kernel.ndim - 2))
    return jnp.moveaxis(flipped, -2, 0).reshape(kernel.shape[-2], -1)


def pixel_shuffle(x: Float[Array, "b *s f"], size: tuple[int, ...]) -> Float[Array, "b *o e"]:
    """`out[b, m h + s, n w + t, e] = x[b, h, w, (s, t, e)]` of `size` (m, n), or with more axes."""
    (b, *sides, _), dims = x.shape, len(size)
    x = x.reshape(b, *sides, *size, -1)
    pairs = [axis for i in range(1, dims + 1) for axis in (i, dims + i)]
    x = x.transpose(0, *pairs, 2 * dims + 1)
    return x.reshape(b, *(n * m for n, m in zip(sides, size, strict=True)), x.shape[-1])


def up_concat_conv(
    x: Float[Array, "b h w d"],
    skip: Float[Array, "b i j s"] | None,
    up_kernel: Float[Array, "m n d e"],
    up_bias: Float[Array, " e"],
    kernel: Float[Array, "k l c f"],
    bias: Float[Array, " f"],
) -> Float[Array, "b i j f"]:
    """`up_conv` of `x`, `skip` appended if there is one (c = e + s), then a padded convolution."""
    x = up_conv(x, up_kernel, up_bias)
    x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
    return convolve(x, kernel, padding=same_padding(kernel)) + bias
