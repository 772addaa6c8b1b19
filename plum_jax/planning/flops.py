"""Floating-point operations of a program, counted in its jaxpr: matrix products and convolutions, loops by their length.

XLA's own count (`cost_analysis`) takes the body of a loop once, whatever its length.
"""

import math

import jax


def count_flops(jaxpr):
    """ClosedJaxpr -> FLOPs of one run over all devices. The longest branch of a condition counts; a `while` counts once."""
    return sum(_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        inputs = math.prod(kernel) // kernel[spec[0]]  # of one output value: the spatial window times the input channels
        return 2 * inputs * math.prod(equation.outvars[0].aval.shape)
    inner = [count_flops(part) for part in _jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner, default=0)
    return sum(inner)


def _jaxprs(params):
    kinds = (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, kinds):
                yield item
