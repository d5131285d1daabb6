"""Layers that both halves of the model share, initialised as torch's reference initialises them."""

from collections.abc import Callable
from functools import partial
from typing import Any

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


@jax.custom_vjp
def product(x: Float[Array, "*n d"], kernel: Float[Array, "d e"]) -> Float[Array, "*n e"]:
    """`x @ kernel`, with the kernel's gradient as `x.T @ gradient`.

    JAX's own is `(gradient.T @ x).T`. For the transpose, XLA on a CPU adds up the gradients of the
    residual stream anew in each layer, which makes the time grow with the square of the depth.
    Only for reverse differentiation.
    """
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, gradients = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
    return gradient @ kernel.T, rows.T @ gradients


product.defvjp(_product_forward, _product_backward)


def linear(features: int, fan_in: int, dtype: Dtype, name: str) -> nn.Dense:
    """Linear layer of `fan_in` to `features` channels."""
    init = torch_uniform(fan_in)

    def dot_general(x: Array, kernel: Array, *_args: Any, **_options: Any) -> Array:
        return product(x, kernel)

    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        dot_general=dot_general,
        name=name,
    )


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


def max_pool(x: Float[Array, "b h w d"]) -> Float[Array, "b i j d"]:
    """2x2 maximum with stride 2. Without windows, whose gradient takes long on a CPU."""
    b, h, w, d = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, d)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact one, in float32, as torch writes it: half the time of the form with erfc."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """As a choice: a maximum with 0, XLA on a CPU would compute anew, with all elementwise before
    it, in the transposed copy that a kernel's gradient takes of a convolution's input.
    """
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: Float[Array, "*n d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
    axes: tuple[int, ...],
    epsilon: float,
) -> tuple[Float[Array, "*n d"], Array, Array]:
    """`x` to mean 0 and variance 1 along `axes`, then scale and bias; also that mean and variance.

    In float32, the variance in two passes as torch does, `x` given back in its own type. Mean and
    variance have no gradient of their own. The gradient is written down, for JAX's own takes twice
    as many sums and keeps twice as many arrays.
    """
    return _normalise_forward(x, scale, bias, axes, epsilon)[0]


def _normalise_forward(
    x: Array, scale: Array, bias: Array, axes: tuple[int, ...], epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=True)
    variance = jnp.square(wide - mean).mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse * scale + bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalise_backward(
    axes: tuple[int, ...],
    _epsilon: float,
    saved: tuple[Array, ...],
    gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = saved
    gradient = gradients[0].astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * inverse
    others = tuple(range(x.ndim - 1))
    d_scale, d_bias = (gradient * y).sum(others), gradient.sum(others)
    if axes == others:  # the same sums, over the devices too
        count = x.size // x.shape[-1]
        level, slope = scale * d_bias / count, scale * d_scale / count
    else:
        level = (gradient * scale).mean(axes, keepdims=True)
        slope = (gradient * scale * y).mean(axes, keepdims=True)
    # A difference at last, for XLA on a CPU makes it once then; a product with `inverse`, it
    # computes anew for each use.
    d_x = inverse * (gradient * scale - level) - y * (inverse * slope)
    return d_x.astype(x.dtype), d_scale, d_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nn.Module):
    """Normalisation over channels."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return normalise(x, scale, bias, (x.ndim - 1,), self.epsilon)[0]


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
        y, mean, var = normalise(x, scale, bias, (0, 1, 2), epsilon)
        if not self.is_initializing():
            count = x.size // channels
            unbiased = var.ravel() * (count / max(count - 1, 1))
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean.ravel()
            running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        return y


class GreyConv(nn.Module):
    """Square convolution of a grey image, with the kernel of its three equal channels."""

    features: int
    size: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 1"]) -> Float[Array, "b i j e"]:
        size, init = self.size, torch_uniform(3 * self.size * self.size)
        kernel = self.param("kernel", init, (size, size, 3, self.features))
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        padding = [(size // 2, size // 2) if self.stride == 1 else (0, 0)] * 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel.sum(2, keepdims=True).astype(self.dtype),
            (self.stride, self.stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias


class ConvUnit(nn.Module):
    """Conv 3x3, BatchNorm, ReLU; `grey`: of the image itself."""

    features: int
    dtype: Dtype
    grey: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        if self.grey:
            x = GreyConv(self.features, 3, 1, self.dtype, name="conv")(x)
        else:
            x = conv(self.features, x.shape[-1], 3, self.dtype, "conv")(x)
        return relu(BatchNorm(name="norm")(x, train))


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
