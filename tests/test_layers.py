import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plum_jax.models import layers


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_linear_with_adapter_is_the_formula():
    linear = layers.Linear(5, 7, bias=True, lora=(2, 6.0), rngs=nnx.Rngs(0))
    x, b = array(0, 3, 5), array(1, 2, 7)
    np.testing.assert_array_equal(linear(x), linear(x, adapter=False))  # lora_b starts at zero
    linear.lora_b[...] = b
    linear.bias[...] = array(2, 7)
    base = x @ linear.kernel[...] + linear.bias[...]
    np.testing.assert_allclose(linear(x, adapter=False), base, atol=1e-6)
    np.testing.assert_allclose(linear(x), base + 3.0 * (x @ linear.lora_a[...]) @ b, atol=1e-5)


def test_linear_keeps_the_dtype_of_its_input():
    linear = layers.Linear(8, 8, bias=True, lora=(2, 4.0), rngs=nnx.Rngs(0))
    for dtype in (jnp.bfloat16, jnp.float32):
        assert linear(array(0, 2, 8).astype(dtype), dropout=0.5, key=jax.random.key(0)).dtype == dtype


def test_linear_starts_like_torch():
    kernel = np.asarray(layers.Linear(400, 300, rngs=nnx.Rngs(0)).kernel[...])
    assert np.abs(kernel).max() <= 400**-0.5
    np.testing.assert_allclose(kernel.std(), (1 / 3 / 400) ** 0.5, rtol=0.01)


def test_adapter_dropout_touches_only_the_adapter():
    linear = layers.Linear(6, 6, lora=(3, 3.0), rngs=nnx.Rngs(0))
    x = array(0, 4, 6)
    np.testing.assert_array_equal(linear(x, dropout=0.5, key=jax.random.key(0)), linear(x))
    linear.lora_b[...] = array(1, 3, 6)
    assert not np.allclose(linear(x, dropout=0.5, key=jax.random.key(0)), linear(x))


def test_drop_keeps_the_mean_and_is_off_without_key():
    x = jnp.ones(20000)
    y = layers.drop(x, 0.25, jax.random.key(0))
    assert set(np.unique(y).round(4)) == {0.0, np.float32(1.3333)}
    np.testing.assert_allclose(y.mean(), 1, atol=0.02)
    assert layers.drop(x, 0.25, None) is x
    assert layers.drop(x, 0.0, jax.random.key(0)) is x


def test_norms_match_torch():
    torch = pytest.importorskip("torch")
    x, scale, bias = 3 + 5 * array(0, 2, 3, 8), array(1, 8), array(2, 8)
    norm = layers.LayerNorm(8, epsilon=1e-2)
    norm.scale[...], norm.bias[...] = scale, bias
    t = lambda a: torch.tensor(np.asarray(a))  # noqa: E731
    np.testing.assert_allclose(norm(x), torch.nn.functional.layer_norm(t(x), (8,), t(scale), t(bias), 1e-2), atol=1e-5)
    rms = layers.RMSNorm(8, epsilon=1e-2)
    rms.scale[...] = scale
    np.testing.assert_allclose(rms(x), torch.nn.functional.rms_norm(t(x), (8,), t(scale), 1e-2), atol=1e-5)


def test_norms_compute_in_float32_and_return_bfloat16():
    x = (1000 + array(0, 4, 64)).astype(jnp.bfloat16)  # a variance that bfloat16 sums would lose
    for norm in (layers.LayerNorm(64, epsilon=1e-5), layers.RMSNorm(64, epsilon=1e-5)):
        assert norm(x).dtype == jnp.bfloat16
        np.testing.assert_allclose(norm(x).astype(jnp.float32), norm(x.astype(jnp.float32)), atol=0.02, rtol=0.01)


def test_activations_match_torch():
    torch = pytest.importorskip("torch")
    x = array(0, 50) * 4
    t = torch.tensor(np.asarray(x))
    np.testing.assert_allclose(layers.gelu(x), torch.nn.functional.gelu(t), atol=1e-6)
    np.testing.assert_allclose(layers.quick_gelu(x), t * torch.sigmoid(1.702 * t), atol=1e-6)


class Doubled(nnx.Module):
    """A layer with an argument, an adapter and dropout, to see what a stack passes on."""

    def __init__(self, rngs):
        self.linear = layers.Linear(8, 8, lora=(2, 4.0), rngs=rngs)

    def __call__(self, x, shift, *, key=None):
        return x + self.linear(x, dropout=0.5, key=key) + shift


def test_stack_is_the_loop():
    stack = layers.make_stack(Doubled, 3, nnx.Rngs(0))
    x, shift = array(1, 2, 8), array(2, 8)
    stack.linear.lora_b[...] = array(3, 3, 2, 8)
    graphdef, params = nnx.split(stack)
    keys = jax.random.split(jax.random.key(0), 3)
    for layer_keys in (None, keys):
        want = x
        for i in range(3):
            layer = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], params))
            want = layer(want, shift, key=None if layer_keys is None else layer_keys[i])
        for remat in (True, False):
            np.testing.assert_allclose(layers.run_stack(stack, x, shift, keys=layer_keys, remat=remat), want, atol=1e-6)


def test_stacked_layers_start_different():
    kernel = np.asarray(layers.make_stack(Doubled, 2, nnx.Rngs(0)).linear.kernel[...])
    assert not np.allclose(kernel[0], kernel[1])
