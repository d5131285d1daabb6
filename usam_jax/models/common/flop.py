"""The work of a network: floating-point operations of its products and convolutions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from usam_jax.models.common import registry


def forward_flop(config: ConfigDict) -> float:
    """Return the FLOP of the forward pass per predicted slice, without prompts.

    Nothing is computed. A multiply-add counts as two; sums, activations and normalisation do not
    count, and neither do the forms of `models.ops` for CPUs.
    """
    model = registry.make_model(config)
    image = jax.ShapeDtypeStruct((1, *registry.input_shape(config)), jnp.float32)
    flop = count_flop(model.apply, registry.variable_shapes(config), image, None)
    return flop / registry.predicted_slices(config)


def count_flop(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the FLOP of all products and convolutions of a call, whose arrays may be abstract."""
    return jaxpr_flop(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flop(jaxpr: Any) -> float:
    """Return the FLOP of all products and convolutions of a jaxpr, bodies of loops included.

    Raises ValueError for a product in a loop whose number of rounds is not known.
    """
    return sum((equation_flop(x) for x in jaxpr.eqns), 0.0)


def equation_flop(equation: Any) -> float:
    """Return the FLOP of one equation of a jaxpr."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # Zeros between the pixels of a transposed convolution's input are not multiplied.
        places = equation.outvars[0].aval.size / math.prod(params["lhs_dilation"])
        return 2.0 * places * kernel.size / features
    inner = [jaxpr_flop(x) for x in sub_jaxprs(params)]
    if name == "cond":
        platforms = params.get("branches_platforms")
        return inner[platforms.index(None)] if platforms else max(inner)
    if name == "while" and any(inner):
        raise ValueError("a while loop: got products in it, expected a scan, which has a length")
    return sum(inner, 0.0) * (params["length"] if name == "scan" else 1)


def sub_jaxprs(params: dict[str, Any]) -> list[Any]:
    """Return the jaxprs among the parameters of an equation."""
    values = [y for x in params.values() for y in (x if isinstance(x, tuple | list) else (x,))]
    found = [getattr(x, "jaxpr", x) for x in values]
    return [x for x in found if hasattr(x, "eqns")]
