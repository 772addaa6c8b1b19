"""Rounding to the dtype of a reference run, where its effect on a result is wanted (M D24, M D38)."""

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")


def rounded(x, dtype):
    """float32 -> float32 with the digits of `dtype`, for values and, as in a run of that dtype, for cotangents.

    A cast to bfloat16 and back would be optimised away: XLA may keep more digits than asked for.
    """
    return jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7) if dtype == "bfloat16" else x
