"""Layers that networks share, initialised as in torch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models import ops
from usam_jax.models.common.windows import window_partition

Dtype = jnp.dtype | type
Init = Callable[..., Array]
Activation = Callable[[Array], Array]

# Torch's kaiming_normal_ with the gain of ReLU. JAX's own he_normal is truncated.
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


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


def conv_of_windows(
    x: Array,
    kernel: Array,
    strides: Any,
    padding: Any,
    *,
    rhs_dilation: Any,
    **_options: Any,  # those that `conv` leaves at their defaults
) -> Array:
    """`ops.conv3d` with the arguments of `lax.conv_general_dilated`, as `nn.Conv` calls it."""
    assert set(rhs_dilation) == {1}, "convolutions of windows have no dilation"
    return ops.conv3d(x, kernel, stride=tuple(strides), padding=tuple(padding))


def conv(
    features: int,
    fan_in: int,
    size: int,
    dtype: Dtype,
    name: str,
    dims: int = 2,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = True,
    kernel_init: Init | None = None,
    bias_init: Init | None = None,
) -> nn.Conv:
    """Square or cubic convolution from `fan_in` channels, by default initialised as in torch.

    Zero-padded by `dilation * ((size - 1) // 2)` on each side: an odd size keeps that of the map if
    `stride` is 1, and a size of 2 is not padded.
    """
    init = torch_uniform(fan_in * size**dims)
    return nn.Conv(
        features,
        (size,) * dims,
        strides=stride,
        padding=dilation * ((size - 1) // 2),
        kernel_dilation=dilation,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or init,
        bias_init=bias_init or init,
        conv_general_dilated=conv_of_windows if dims == 3 else None,
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


def drop_path(rate: float, train: bool) -> nn.Dropout:
    """Dropout of whole maps float[b h w d], by sample and only if `train`."""
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)


class InstanceNorm(nn.Module):
    """Normalisation over the pixels of each image and channel, with eps 1e-5."""

    scale_init: Init = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return ops.normalise(x, scale, bias, axes=(1, 2), epsilon=1e-5)[0]


SHARED = "shared_statistics"  # collection of BatchNorm


class BatchNorm(nn.Module):
    """Torch's BatchNorm2d or 3d over `x`, channels last: eps 1e-5, momentum 0.1.

    Unlike Flax's, the running variance is the unbiased one, as in torch. Under jit with the
    batch sharded over devices, the statistics are those of the whole batch. A pass in which the
    collection `SHARED` is mutable leaves its statistics there, with their gradient, and a pass that
    is given them uses them in place of its own.
    """

    repeats: int = 1  # pixels of the published network's map for each of `x`, all equal

    @nn.compact
    def __call__(self, x: Float[Array, "b *s d"], train: bool) -> Float[Array, "b *s d"]:
        channels, axes, epsilon = x.shape[-1], tuple(range(x.ndim - 1)), 1e-5
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def apply(mean: Array, var: Array) -> Float[Array, "b *s d"]:
            factor = jax.lax.rsqrt(var + epsilon) * scale
            return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)

        if not train:
            return apply(running_mean.value, running_var.value)
        if self.has_variable(SHARED, "mean"):
            return apply(self.get_variable(SHARED, "mean"), self.get_variable(SHARED, "var"))
        if not self.is_initializing() and self.is_mutable_collection(SHARED):
            wide = x.astype(jnp.float32)  # `ops.normalise` gives its statistics no gradient
            mean = wide.mean(axes)
            var = jnp.square(wide - mean).mean(axes)
            self.put_variable(SHARED, "mean", mean)
            self.put_variable(SHARED, "var", var)
            y = apply(mean, var)
        else:
            y, mean, var = ops.normalise(x, scale, bias, axes=axes, epsilon=epsilon)
        if not self.is_initializing():
            count = x.size // channels * self.repeats
            unbiased = var.ravel() * (count / max(count - 1, 1))
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean.ravel()
            running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        return y


class GreyConv(nn.Module):
    """Square convolution of a grey image with a kernel for three equal channels.

    One channel of the summed kernel gives what three equal channels give, with a third of the
    products (15 ms a batch -> 2 ms on two CPU cores). The slices of a window are channels of their
    own: a kernel for three of them has the shape of that for a grey image.
    """

    features: int
    size: int
    stride: int
    dtype: Dtype
    padding: int | None = None  # default: what keeps the size if `stride` is 1, else none

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j e"]:
        is_grey = x.shape[-1] == 1
        size, channels = self.size, 3 if is_grey else x.shape[-1]
        init = torch_uniform(channels * size * size)
        kernel = self.param("kernel", init, (size, size, channels, self.features))
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        kernel = (kernel.sum(2, keepdims=True) if is_grey else kernel).astype(self.dtype)
        default = size // 2 if self.stride == 1 else 0
        padding = default if self.padding is None else self.padding
        return ops.convolve(x, kernel, stride=self.stride, padding=padding) + bias


class PatchConv(nn.Module):
    """Square convolution whose stride is its size, which divides that of the map.

    Patches do not overlap, so one matmul suffices.
    """

    features: int
    size: int
    dtype: Dtype
    kernel_init: Init | None = None
    bias_init: Init | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b i j e"]:
        (b, h, w, d), size = x.shape, self.size
        init = torch_uniform(d * size**2)
        kernel = self.param("kernel", self.kernel_init or init, (size, size, d, self.features))
        bias = self.param("bias", self.bias_init or init, (self.features,)).astype(self.dtype)
        patches = window_partition(x, size).reshape(b, h // size, w // size, -1)
        return ops.matmul(patches, kernel.reshape(-1, self.features).astype(self.dtype)) + bias


class DepthwiseConv(nn.Module):
    """Square convolution of each channel by itself, zero-padded to keep the size (which is odd)."""

    size: int
    dtype: Dtype
    bias: bool = True
    kernel_init: Init | None = None
    bias_init: Init | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        d, init = x.shape[-1], torch_uniform(self.size**2)
        kernel = self.param("kernel", self.kernel_init or init, (self.size, self.size, 1, d))
        x = ops.depthwise_conv(x, kernel.astype(self.dtype))
        if not self.bias:
            return x
        return x + self.param("bias", self.bias_init or init, (d,)).astype(self.dtype)


class ConvUnit(nn.Module):
    """Convolution, BatchNorm and an activation, if any, of a map with any number of channels.

    With `grey`, the input is a grey image or a window, for which the kernel is that of `GreyConv`.
    """

    features: int
    dtype: Dtype
    grey: bool = False
    bias: bool = True  # of the convolution; with `grey` it always has one
    size: int = 3
    activation: Activation | None = ops.relu

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b h w e"]:
        if self.grey:
            x = GreyConv(self.features, self.size, 1, self.dtype, name="conv")(x)
        else:
            x = conv(self.features, x.shape[-1], self.size, self.dtype, "conv", bias=self.bias)(x)
        x = BatchNorm(name="norm")(x, train)
        return self.activation(x) if self.activation else x


class Mlp(nn.Module):
    """Two linear layers with an activation between them, back to the width of `x`.

    In training, each is followed by dropout at the rate `dropout`.
    """

    hidden: int
    activation: Activation
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
