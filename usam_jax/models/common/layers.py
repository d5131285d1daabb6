"""Layers that networks share, initialised as in torch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models import ops

Dtype = jnp.dtype | type
Init = Callable[..., Array]


@functools.cache  # tests check the types of each new function, a third of the time to trace
def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Torch's default initialiser of kernels and biases of linear layers and convolutions.

    Uniform in +-1/sqrt(fan_in) (Kaiming's with a = sqrt(5)). Source: torch.nn.Linear.
    """
    bound = fan_in**-0.5

    def init_fn(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init_fn


def linear(
    features: int,
    fan_in: int,
    dtype: Dtype,
    name: str,
    bias: bool = True,
    kernel_init: Init | None = None,
    bias_init: Init | None = None,
) -> nn.Dense:
    """Linear layer from `fan_in` to `features` channels, by default initialised as in torch."""
    init = torch_uniform(fan_in)
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or init,
        bias_init=bias_init or init,
        dot_general=dense_matmul,
        name=name,
    )


def dense_matmul(x: Array, kernel: Array, *_args: Any, **_options: Any) -> Array:
    """`ops.matmul` with the arguments of `lax.dot_general`, as `nn.Dense` calls it."""
    return ops.matmul(x, kernel)


def conv(
    features: int,
    fan_in: int,
    size: int,
    dtype: Dtype,
    name: str,
    stride: int = 1,
    bias: bool = True,
) -> nn.Conv:
    """Square convolution from `fan_in` channels, zero-padded to keep the size if `stride` is 1."""
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


def average_pool(x: Float[Array, "b h w d"], stride: tuple[int, int]) -> Float[Array, "b i j d"]:
    """Return the mean of each window of the size `stride`, which divides that of `x`."""
    (b, h, w, d), (m, n) = x.shape, stride
    return x.reshape(b, h // m, m, w // n, n, d).mean((2, 4))


class LayerNorm(nn.Module):
    """Layer normalisation over channels."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return ops.normalise(x, scale, bias, axes=(x.ndim - 1,), epsilon=self.epsilon)[0]


class BatchNorm(nn.Module):
    """Torch's BatchNorm2d over `x` float[b h w d]: eps 1e-5, momentum 0.1.

    Unlike Flax's, the running variance is the unbiased one, as in torch. Under jit with the
    batch sharded over devices, the statistics are those of the whole batch.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w d"]:
        channels, epsilon = x.shape[-1], 1e-5
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if not train:
            factor = jax.lax.rsqrt(running_var.value + epsilon) * scale
            y = (x.astype(jnp.float32) - running_mean.value) * factor + bias
            return y.astype(x.dtype)
        y, mean, var = ops.normalise(x, scale, bias, axes=(0, 1, 2), epsilon=epsilon)
        if not self.is_initializing():
            count = x.size // channels
            unbiased = var.ravel() * (count / max(count - 1, 1))
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean.ravel()
            running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        return y


class GreyConv(nn.Module):
    """Square convolution of a grey image with a kernel for three equal channels.

    One channel of the summed kernel gives what three equal channels give, with a third of the
    products (15 ms a batch -> 2 ms on two CPU cores).
    """

    features: int
    size: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 1"]) -> Float[Array, "b i j e"]:
        size, init = self.size, torch_uniform(3 * self.size * self.size)
        kernel = self.param("kernel", init, (size, size, 3, self.features))
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        kernel = kernel.sum(2, keepdims=True).astype(self.dtype)
        padding = size // 2 if self.stride == 1 else 0
        return ops.convolve(x, kernel, stride=self.stride, padding=padding) + bias


class ConvUnit(nn.Module):
    """3x3 convolution with bias, BatchNorm, ReLU, of a map or an image with any channels.

    With `grey`, the input is a grey image and the kernel has three input channels (`GreyConv`).
    """

    features: int
    dtype: Dtype
    grey: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        if self.grey:
            x = GreyConv(self.features, 3, 1, self.dtype, name="conv")(x)
        else:
            x = conv(self.features, x.shape[-1], 3, self.dtype, "conv")(x)
        return ops.relu(BatchNorm(name="norm")(x, train))


class Mlp(nn.Module):
    """Two linear layers with an activation between them, back to the width of `x`.

    In training, each is followed by dropout at the rate `dropout`.
    """

    hidden: int
    activation: Callable[[Array], Array]
    dtype: Dtype
    kernel_init: Init | None = None
    bias_init: Init | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "... d"], train: bool = False) -> Float[Array, "... d"]:
        width = x.shape[-1]
        inits: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = linear(self.hidden, width, self.dtype, "lin1", **inits)(x)
        x = drop(self.activation(x))
        return drop(linear(width, self.hidden, self.dtype, "lin2", **inits)(x))
