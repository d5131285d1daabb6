"""Transposed convolutions that double height and width, alone and before another convolution."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models.common.layers import BatchNorm, Dtype, product, relu, torch_uniform


class Kernel(nn.Module):
    """The kernel of this shape and the bias of a convolution, initialised as torch does."""

    shape: tuple[int, ...]
    fan_in: int
    dtype: Dtype

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "h w d e"], Float[Array, " e"]]:
        init = torch_uniform(self.fan_in)
        kernel = self.param("kernel", init, self.shape)
        bias = self.param("bias", init, self.shape[-1:])
        return kernel.astype(self.dtype), bias.astype(self.dtype)


def up_kernel(inputs: int, features: int, dtype: Dtype, name: str) -> Kernel:
    """Of a transposed convolution, 2x2 with stride 2; torch counts its outputs as fan-in."""
    return Kernel((2, 2, inputs, features), features * 2 * 2, dtype, name=name)


def up_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array, "2 2 d e"], bias: Float[Array, " e"]
) -> Float[Array, "b i j e"]:
    """Transposed convolution, 2x2 with stride 2, with the kernel as `nn.ConvTranspose` has it.

    As one matrix product, since no two of its windows meet: of a convolution, XLA on a CPU makes a
    slow gradient of the kernel.
    """
    b, h, w, d = x.shape
    x = product(x, kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(d, -1))
    return pixel_shuffle(x.reshape(b, h, w, 2, 2, -1)) + bias


def pixel_shuffle(x: Float[Array, "b h w 2 2 e"]) -> Float[Array, "b i j e"]:
    """The map of patches of 2x2 pixels."""
    b, h, w, _, _, e = x.shape
    return x.swapaxes(2, 3).reshape(b, 2 * h, 2 * w, e)


class UpConvUnit(nn.Module):
    """`up_conv` with the kernel `up`, concatenation with a skip, then what `ConvUnit` does.

    No map is made between the two convolutions, which are linear: the first one and its half of the
    second become one, of 4 products for each pixel and pair of channels instead of 9 and those of
    the first, and of more channels at once.
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w d"],
        skip: Float[Array, "b i j s"] | None,
        up: tuple[Float[Array, "2 2 d e"], Float[Array, " e"]],
        train: bool,
    ) -> Float[Array, "b i j f"]:
        upper = up[1].size
        inputs = upper + (skip.shape[-1] if skip is not None else 0)
        shape = (3, 3, inputs, self.features)
        kernel, bias = Kernel(shape, inputs * 3 * 3, self.dtype, name="conv")()
        x = up_conv_conv(x, *up, kernel[:, :, :upper])
        # The sum of both maps last: with the bias last, XLA on a CPU joins patches at each use.
        x += bias if skip is None else convolve(skip, kernel[:, :, upper:], 1) + bias
        return relu(BatchNorm(name="norm")(x, train))


def up_conv_conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "2 2 d e"],
    bias: Float[Array, " e"],
    second: Float[Array, "3 3 e f"],
) -> Float[Array, "b i j f"]:
    """`up_conv` and then a 3x3 convolution with zeros around, as one convolution of `x`.

    The kernels of both, joined at each call, are one transposed convolution of 4x4 with stride 2:
    tap s of the first and u of the second make tap 1 - s + u. So of two neighbouring inputs, rows
    i-1 and i, come the outputs of rows 2i-1 (taps 3 and 1) and 2i (taps 2 and 0), and of two by two
    a patch of 2x2. The bias ends where the map ends, so it is the kernel of a channel of ones.
    """
    b, h, w, d = x.shape
    f = second.shape[-1]
    first = jnp.concatenate([kernel[::-1, ::-1], jnp.broadcast_to(bias, (2, 2, 1, bias.size))], 2)
    taps = jnp.einsum("stde,uvef->stuvdf", first, second)
    both = jnp.zeros((4, 4, d + 1, f), x.dtype)
    for s, t in np.ndindex(2, 2):
        both += jnp.pad(taps[s, t], ((1 - s, s), (1 - t, t), (0, 0), (0, 0)))
    both = both.reshape(2, 2, 2, 2, d + 1, f)[:, ::-1, :, ::-1]  # row of input, output; columns
    both = both.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, d + 1, 4 * f)
    x = jnp.concatenate([x, jnp.ones((b, h, w, 1), x.dtype)], axis=-1)
    # Padded apart: of a convolution that makes a map larger, XLA on a CPU makes slow gradients.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = convolve(x, both, 0).reshape(b, h + 1, w + 1, 2, 2, f)
    return pixel_shuffle(patches)[:, 1:-1, 1:-1]


def convolve(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k l d e"], padding: int
) -> Float[Array, "b i j e"]:
    """With stride 1 and zeros around."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
