import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from plum_jax.precision import rounded

VALUES = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10


def test_rounding_is_that_of_bfloat16_also_when_compiled():
    want = VALUES.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.abs(want - VALUES).max() > 0.02
    for run in (rounded, jax.jit(rounded, static_argnums=1)):
        got = run(VALUES, "bfloat16")
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, want)
    assert rounded(VALUES, "float32") is VALUES


def test_cotangents_are_rounded_too():
    _, back = jax.vjp(lambda x: rounded(x, "bfloat16"), VALUES)
    np.testing.assert_array_equal(back(VALUES)[0], VALUES.astype(ml_dtypes.bfloat16).astype(np.float32))
