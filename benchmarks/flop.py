"""Floating-point operations of a JAX program, counted without compiling it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count_flop(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the operations of a call's matrix products and convolutions.

    A multiply-add counts as two. `arguments` may be abstract arrays. Of operations with a form per
    platform, the reference counts.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        sizes = (equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * equation.outvars[0].aval.size * math.prod(sizes)
    if name == "conv_general_dilated":
        kernel, axes = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
        # Dilation inserts zeros, which are not multiplied.
        skipped = math.prod(params["lhs_dilation"])
        return 2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[axes[0]]) // skipped
    if name == "cond":
        return _count(params["branches"][-1].jaxpr)
    inner = sum(map(_count, _inner(params.values())))
    return inner * params.get("length", 1) if name == "scan" else inner


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
