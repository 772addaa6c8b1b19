"""Parameters as plain nested dictionaries: paths, the trainable part, counting, casting."""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

INT8_SCALES = r"(kernel|embed)_scale$"


def partition(params, trainable):
    """Nested dictionary -> (trainable, frozen), by a regular expression searched in paths ('llama/layers/q_proj/lora_a')."""
    flat = flatten_dict(params, sep="/")
    chosen = {k for k in flat if re.search(trainable, k)}
    return tuple(unflatten_dict({k: v for k, v in flat.items() if (k in chosen) == want}, sep="/") for want in (True, False))


def merge(a, b):
    """The inverse of `partition`: two nested dictionaries without a common leaf -> one."""
    return unflatten_dict({**flatten_dict(a, sep="/"), **flatten_dict(b, sep="/")}, sep="/")


def count(params):
    """Number of scalars. Works on arrays and on shapes."""
    return sum(x.size for x in jax.tree.leaves(params))


def cast(params, dtype):
    """Floating-point leaves in another dtype, but for the scales of int8 weights: few bytes, and the precision of many."""
    flat = flatten_dict(params, sep="/")
    keep = {k for k, x in flat.items() if re.search(INT8_SCALES, k) or not jnp.issubdtype(x.dtype, jnp.floating)}
    return unflatten_dict({k: x if k in keep else x.astype(dtype) for k, x in flat.items()}, sep="/")
