"""Random parameters of any size, drawn on the devices that hold them, one array at a time: no host and no copy is needed."""

import functools

import jax
import jax.numpy as jnp

from plum_jax.sharding import path_name


def random_params(shapes, shardings, seed, dtype_of):
    """Parameters for timing: values near those of a trained model, so that nothing overflows and no term is zero.

    Args:
      shapes: nested dictionary of jax.ShapeDtypeStruct. shardings: the same of shardings.
      seed: of the first array; the others follow.
      dtype_of: path ("llama/layers/q_proj/kernel") -> dtype of the parameter.

    Returns:
      Nested dictionary of jax.Arrays.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    key, found = jax.random.key(seed), []
    for i, ((path, x), sharding) in enumerate(zip(leaves, jax.tree.leaves(shardings), strict=True)):
        name = path_name(path)
        kind = name.endswith(("scale", "bias")), name.endswith("scale")
        draw = _drawer(x.shape, jnp.dtype(dtype_of(name)), *kind, sharding)
        found.append(draw(jax.random.fold_in(key, i)))
    return jax.tree.unflatten(tree, found)


@functools.cache
def _drawer(shape, dtype, is_vector, is_scale, sharding):
    """key -> array; compiled once for all arrays alike. Layers are drawn one after the other: float32 needs room for one."""
    spread = 0.02 if is_vector or len(shape) < 2 else shape[-2] ** -0.5  # vectors of stacked layers have two axes

    def values(key, shape):
        noise = spread * jax.random.normal(key, shape)
        return (1 + noise if is_scale else noise).astype(dtype)

    def draw(key):
        if len(shape) < 3:
            return values(key, shape)
        return jax.lax.map(lambda k: values(k, shape[1:]), jax.random.split(key, shape[0]))

    return jax.jit(draw, out_shardings=sharding)
