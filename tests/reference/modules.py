"""Modules with given or random parameters, without the time that compiling their initialisers takes."""

import jax
import numpy as np
from flax import nnx


def shapes(make):
    """(graphdef, nested dictionary of shapes) of the module that `make()` describes; nothing is computed."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return graphdef, jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(state))


def load(make, params):
    """The module with these parameters; names and shapes must be the same."""
    graphdef, want = shapes(make)
    got = jax.tree.map(np.shape, params)
    assert got == want, f"{got} is not {want}"
    return nnx.merge(graphdef, params)


def random_params(make, seed):
    """-> (graphdef, params): float32, norm scales near 1, biases and tables not zero, matrices near 1 / sqrt(fan-in)."""
    graphdef, tree = shapes(make)
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        if name == "scale":
            return (1 + 0.2 * rng.normal(size=shape)).astype(np.float32)
        scale = shape[-2] ** -0.5 if name == "kernel" else 0.2  # of convolutions: per pixel of the kernel
        return (scale * rng.normal(size=shape)).astype(np.float32)

    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return graphdef, jax.tree_util.tree_map_with_path(draw, tree, is_leaf=is_shape)


def random_module(make, seed):
    """The module with `random_params`."""
    return nnx.merge(*random_params(make, seed))
