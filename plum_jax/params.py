"""Parameters as plain nested dictionaries: paths, the trainable part, counting, casting."""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict


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
    """Floating-point leaves in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
