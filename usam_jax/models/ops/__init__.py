"""The operations of the networks, each with a form for CPUs or GPUs if XLA needs one.

`activation`, `attention`, `conv`, `linear` and `norm` hold the references. `cpu`, `cpu_conv`,
`cpu_attention` and `gpu` hold the forms that XLA compiles to faster code. Networks call the names
below. A program that is compiled for one platform contains the forms of that platform alone; `gpu`
says when its forms are used.
"""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from usam_jax.models.ops import (
    activation,
    attention,
    conv,
    cpu,
    cpu_attention,
    cpu_conv,
    gpu,
    linear,
    norm,
)
from usam_jax.models.ops.conv import convolve, pixel_shuffle

__all__ = [
    "conv3d",
    "convolve",
    "depthwise_conv",
    "gelu",
    "matmul",
    "max_pool",
    "normalise",
    "pixel_shuffle",
    "relative_attention",
    "relu",
    "self_attention",
    "up_concat_conv",
    "up_conv",
]

P = ParamSpec("P")
R = TypeVar("R")


def per_platform(
    reference: Callable[P, R], *, cpu: Callable[P, R], cuda: Callable[P, R] | None = None
) -> Callable[P, R]:
    """`reference` with its forms: arrays are positional, static arguments keywords.

    Lowering drops the other platforms' forms, also from gradients, so the choice costs tracing time
    alone. `jit` traces the forms once per shape instead of once per layer. It is inlined because
    XLA's partitioner would otherwise meet each choice as a conditional inside a function, which
    then stays and keeps all-reduces from being combined. The form for CUDA is not even traced
    unless `gpu.wanted()`.
    """
    parameters = inspect.signature(reference).parameters.values()
    keywords = [x.name for x in parameters if x.kind is x.KEYWORD_ONLY]

    def choose(forms: dict[str, Callable[P, R]]) -> Callable[P, R]:
        @functools.partial(jax.jit, static_argnames=keywords, inline=True)
        @functools.wraps(reference)
        def op(*arrays: P.args, **static: P.kwargs) -> R:
            bound = {x: functools.partial(y, **static) for x, y in forms.items()}
            return jax.lax.platform_dependent(*arrays, **bound)

        return op

    portable = choose({"cpu": cpu, "default": reference})
    if cuda is None:
        return portable
    with_cuda = choose({"cpu": cpu, "cuda": cuda, "default": reference})

    @functools.wraps(reference)
    def op(*arrays: P.args, **static: P.kwargs) -> R:
        return (with_cuda if gpu.wanted() else portable)(*arrays, **static)

    return op


matmul = per_platform(linear.matmul, cpu=cpu.matmul)
relu = per_platform(activation.relu, cpu=cpu.relu)
gelu = per_platform(activation.gelu, cpu=cpu.gelu, cuda=gpu.gelu)
normalise = per_platform(norm.normalise, cpu=cpu.normalise, cuda=gpu.normalise)
max_pool = per_platform(conv.max_pool, cpu=cpu_conv.max_pool)
conv3d = per_platform(conv.conv3d, cpu=cpu_conv.conv3d)
depthwise_conv = per_platform(conv.depthwise_conv, cpu=cpu_conv.depthwise_conv)
up_conv = per_platform(conv.up_conv, cpu=cpu_conv.up_conv)
up_concat_conv = per_platform(
    conv.up_concat_conv, cpu=cpu_conv.up_concat_conv, cuda=gpu.up_concat_conv
)
relative_attention = per_platform(
    attention.relative_attention, cpu=cpu_attention.relative_attention, cuda=gpu.relative_attention
)
self_attention = per_platform(attention.self_attention, cpu=cpu_attention.self_attention)
