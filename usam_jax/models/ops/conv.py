"""Convolutions, pooling and upsampling of maps with channels last."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l d e"], *, stride: int = 1, padding: int
) -> Float[Array, "b i j e"]:
    """Convolution with `padding` zeros on each side."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def max_pool(x: Float[Array, "b h w d"]) -> Float[Array, "b i j d"]:
    """2x2 maximum with stride 2."""
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def up_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array, "2 2 d e"], bias: Float[Array, " e"]
) -> Float[Array, "b i j e"]:
    """Transposed 2x2 convolution with stride 2, with `kernel` as in `nn.ConvTranspose`.

    Stride equals kernel size, so windows do not overlap and one matmul suffices.
    """
    return pixel_shuffle(x @ pixel_kernel(kernel)) + bias


def pixel_kernel(kernel: Float[Array, "2 2 d e"]) -> Float[Array, "d f"]:
    """The matrix of a transposed 2x2 convolution: channels to 2x2 pixels of e channels."""
    return kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def pixel_shuffle(x: Float[Array, "b h w f"]) -> Float[Array, "b i j e"]:
    """`out[b, 2 h + s, 2 w + t, e] = x[b, h, w, (s, t, e)]`, with channels as (2, 2, f / 4)."""
    b, h, w, _ = x.shape
    return x.reshape(b, h, w, 2, 2, -1).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1)


def up_concat_conv(
    x: Float[Array, "b h w d"],
    skip: Float[Array, "b i j s"] | None,
    up_kernel: Float[Array, "2 2 d e"],
    up_bias: Float[Array, " e"],
    kernel: Float[Array, "3 3 c f"],
    bias: Float[Array, " f"],
) -> Float[Array, "b i j f"]:
    """`up_conv` of `x`, `skip` appended if there is one (c = e + s), then a 3x3 convolution."""
    x = up_conv(x, up_kernel, up_bias)
    x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
    return convolve(x, kernel, padding=1) + bias
