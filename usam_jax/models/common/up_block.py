"""Blocks that double the height and width of a map."""

from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models import ops
from usam_jax.models.common.layers import BatchNorm, ConvUnit, Dtype, torch_uniform


class Kernel(nn.Module):
    """Kernel and bias of a convolution without the convolution itself, initialised as in torch."""

    shape: tuple[int, ...]
    fan_in: int
    dtype: Dtype

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "*s d e"], Float[Array, " e"]]:
        init = torch_uniform(self.fan_in)
        kernel = self.param("kernel", init, self.shape)
        bias = self.param("bias", init, self.shape[-1:])
        return kernel.astype(self.dtype), bias.astype(self.dtype)


def up_kernel(inputs: int, features: int, dtype: Dtype, name: str, dims: int = 2) -> Kernel:
    """Kernel of a transposed 2x2 or 2x2x2 convolution with stride 2.

    Torch's fan-in counts its outputs.
    """
    return Kernel((2,) * dims + (inputs, features), features * 2**dims, dtype, name=name)


class UpConvUnit(nn.Module):
    """Transposed convolution with the kernel `up`, concatenation with a skip, then `ConvUnit`."""

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
        inputs = up[1].size + (0 if skip is None else skip.shape[-1])
        shape = (3, 3, inputs, self.features)
        conv = Kernel(shape, inputs * 3 * 3, self.dtype, name="conv")()
        x = ops.up_concat_conv(x, skip, *up, *conv)
        return ops.relu(BatchNorm(name="norm")(x, train))


class UpBlock(nn.Module):
    """Transposed convolution, concatenation with a skip if there is one, two `ConvUnit`s.

    The transposed convolution keeps the channels. Source: the paper's formula 6.
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], skip: Float[Array, "b i j e"] | None, train: bool
    ) -> Float[Array, "b i j f"]:
        d = x.shape[-1]
        up = up_kernel(d, d, self.dtype, "up")()
        x = UpConvUnit(self.features, self.dtype, name="nConvs_0")(x, skip, up, train)
        return ConvUnit(self.features, self.dtype, name="nConvs_1")(x, train)
