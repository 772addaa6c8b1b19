"""Floating-point operations of a program, counted in its jaxpr: matrix products and convolutions, loops by their length.

XLA's own count (`cost_analysis`) takes the body of a loop once, whatever its length.
"""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(jaxpr):
    """Jaxpr -> FLOPs of one run over all devices. The longest branch of a condition counts; a `while` counts once."""
    return sum(_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def kept_bytes(jaxpr):
    """Jaxpr of a training step -> bytes, over all devices, that the loops of a forward pass keep for the backward pass.

    These are the stacked results of forward scans (layers, spans); what a backward scan computes again on its way is not kept.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            stacked = equation.outvars[equation.params["num_carry"] :]
            if equation.params["reverse"]:
                continue
            total += sum(math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in stacked)
            if stacked:
                continue
        total += max((kept_bytes(part) for part in jaxprs_of(equation.params)), default=0)
    return total


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
    inner = [count_flops(part) for part in jaxprs_of(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner, default=0)
    if name == "shard_map":  # its body is one device's share
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    if name == "pallas_call":  # its body is one block's share
        return math.prod(params["grid_mapping"].grid) * sum(inner)
    return sum(inner)


def jaxprs_of(params):
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, (Jaxpr, ClosedJaxpr)):
                yield item
