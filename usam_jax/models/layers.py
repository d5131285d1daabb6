"""Layers that both halves of the model share, initialised as torch's reference initialises them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Dtype = jnp.dtype | type


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Torch's default for kernels and biases of linear layers and convolutions.

    Uniform in +-1/sqrt(fan_in) (Kaiming's with a = sqrt(5)). Source: torch.nn.Linear.
    """
    bound = fan_in**-0.5

    def init_fn(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init_fn


def linear(features: int, fan_in: int, dtype: Dtype, name: str) -> nn.Dense:
    """Linear layer of `fan_in` to `features` channels."""
    init = torch_uniform(fan_in)
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)


def conv(
    features: int,
    fan_in: int,
    size: int,
    dtype: Dtype,
    name: str,
    stride: int = 1,
    bias: bool = True,
) -> nn.Conv:
    """Square convolution of `fan_in` channels that keeps the size (stride 1) or tiles it."""
    init = torch_uniform(fan_in * size * size)
    padding = size // 2 if stride == 1 else 0
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        use_bias=bias,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        name=name,
    )


def conv_transpose(features: int, dtype: Dtype, name: str) -> nn.ConvTranspose:
    """Transposed convolution, 2x2 with stride 2: doubles height and width."""
    init = torch_uniform(features * 2 * 2)  # torch counts a transposed kernel's outputs as fan-in
    return nn.ConvTranspose(
        features,
        (2, 2),
        strides=(2, 2),
        padding="VALID",
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        name=name,
    )


def layer_norm(epsilon: float, dtype: Dtype, name: str) -> nn.LayerNorm:
    """Normalisation over channels, with the variance computed in two passes as torch does."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class BatchNorm(nn.Module):
    """Torch's BatchNorm2d over `x` float[b h w d]: eps 1e-5, momentum 0.1.

    Unlike Flax's, the running variance is the unbiased one, as in torch. Under jit with the
    batch sharded over devices, the statistics are those of the whole batch.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w d"]:
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        if train:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        x = (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias
        return x.astype(self.dtype)


class ConvUnit(nn.Module):
    """Conv 3x3, BatchNorm, ReLU."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        x = conv(self.features, x.shape[-1], 3, self.dtype, "conv")(x)
        return nn.relu(BatchNorm(self.dtype, name="norm")(x, train))


class Mlp(nn.Module):
    """Two linear layers with an activation between, back to the width of `x`."""

    hidden: int
    activation: Callable[[Array], Array]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1]
        x = self.activation(linear(self.hidden, width, self.dtype, "lin1")(x))
        return linear(width, self.hidden, self.dtype, "lin2")(x)
