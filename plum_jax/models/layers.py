"""Linear with LoRA, norms, and stacks of layers: what every tower is made of."""

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.sharding import split_rows

UNIFORM = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/sqrt(d_in), 1/sqrt(d_in)), torch's default
INT8_STEPS = 127  # -128 is not used: the steps are symmetric


def to_int8(weight, axis):
    """Symmetric int8 with one scale per output: weight is closest to values * scale, off by at most half a scale.

    Args:
      weight: float[..., I, O] kernel with axis -2, or float[V, D] table with axis -1; `axis` is what a scale runs over.

    Returns:
      (values int8 of the same shape, scale float32 without `axis`); an output of zeros has scale 1.
    """
    weight = weight.astype(jnp.float32)
    largest = jnp.abs(weight).max(axis, keepdims=True)
    scale = jnp.where(largest > 0, largest / INT8_STEPS, 1.0)
    values = jnp.clip(jnp.round(weight / scale), -INT8_STEPS, INT8_STEPS)
    return values.astype(jnp.int8), scale.squeeze(axis)


class Linear(nnx.Module):
    """y = x W + b, plus (alpha / rank) (x A) B when lora = (rank, alpha) is given. Weights follow the dtype of x.

    With int8 W is an int8 kernel times a scale per output channel: y = (x kernel) scale. The values of the kernel are
    exact in bfloat16, and the scale is applied in float32 to the product, so no weight is rounded a second time.

    out_dtype: of the product; float32 keeps the digits in which products of bfloat16 are summed.
    """

    def __init__(self, d_in, d_out, *, bias=False, lora=None, int8=False, kernel_init=UNIFORM, rngs):
        rank, alpha = lora or (1, 0.0)
        kernel, scale = kernel_init(rngs.params(), (d_in, d_out)), None
        if int8:
            kernel, scale = to_int8(kernel, -2)
        self.kernel = nnx.Param(kernel)
        self.kernel_scale = nnx.Param(scale) if int8 else None
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None
        self.lora_a = nnx.Param(UNIFORM(rngs.params(), (d_in, rank))) if lora else None
        self.lora_b = nnx.Param(jnp.zeros((rank, d_out))) if lora else None  # zero: an untrained adapter changes nothing
        self.lora_scale = alpha / rank

    def __call__(self, x, *, adapter=True, dropout=0.0, key=None, out_dtype=None):
        """[..., I] -> [..., O]."""
        out_dtype = out_dtype or x.dtype
        summed = out_dtype if self.kernel_scale is None else jnp.float32
        y = jnp.matmul(as_rows(x), self.kernel[...].astype(x.dtype), preferred_element_type=summed)
        if self.kernel_scale is not None:
            y = (y * self.kernel_scale[...]).astype(out_dtype)
        if self.bias is not None:
            y = add_bias(y, self.bias[...])
        if adapter and self.lora_a is not None:
            z = as_rows(drop(x, dropout, key))
            y += self.lora_scale * (z @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def add_bias(y, bias):
    """[..., O] + [O], in the dtype of y. The gradient of the bias is a product with a row of ones in full precision: the sum
    over rows, which it would be otherwise, takes XLA on a CPU up to twenty times as long."""
    return y + bias.astype(y.dtype)


def _add_bias_forward(y, bias):
    return add_bias(y, bias), bias


def _add_bias_backward(bias, gradient):
    rows = gradient.reshape(-1, gradient.shape[-1])
    ones = jnp.ones(rows.shape[0], rows.dtype)
    return gradient, jnp.matmul(ones, rows, precision="highest", preferred_element_type=jnp.float32).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def as_rows(x):
    """[..., D] -> [R, D]; a vector stays one. Layers work on rows: XLA on a CPU has the gradients of products five times as
    fast then, and adds arrays of one shape ten times as fast as arrays whose shapes differ by a reshape."""
    return x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x


class LayerNorm(nnx.Module):
    """Over the last axis, statistics in float32, biased variance; the result has the dtype of x.

    SAM's LayerNorm2d is this over the channels of a channels-last map (M 4.1).
    """

    def __init__(self, width, *, epsilon):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x):
        y = as_rows(x).astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype).reshape(x.shape)


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, cast back, then times the weight in the dtype of x (M 1.2)."""

    def __init__(self, width, *, epsilon):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x):
        y = as_rows(x).astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y.astype(x.dtype) * self.scale[...].astype(x.dtype)).reshape(x.shape)


def drop(x, rate, key):
    """Inverted dropout; the identity when `key` is None or `rate` is 0."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x))


def gelu(x):
    """The exact (erf) form, as in SAM."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x):
    """x sigmoid(1.702 x), as in CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def split_heads(x, heads):
    """[..., T, N * H] -> [..., T, N, H]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x):
    """[..., T, N, H] -> [..., T, N * H]."""
    return x.reshape(*x.shape[:-2], -1)


def make_stack(make_layer, depth, rngs):
    """`depth` copies of a layer as one module; every parameter gains a leading layer axis."""
    return nnx.vmap(make_layer)(rngs.split(depth))


def run_stack(layers, x, *args, keys=None, policy=None, remat=True, **kwargs):
    """x -> layer_0 -> ... -> layer_{L-1}.

    Args:
      layers: what `make_stack` returned.
      x: the carry of the scan [R, ...]; its rows stay split over the mesh, whatever the weights are split over.
      keys: one dropout key per layer, or None.
      policy: what `jax.checkpoint` keeps; None recomputes a whole layer in the backward pass.
      remat: False keeps every intermediate value: faster where memory is no concern.
    """
    graphdef, params = nnx.split(layers)

    def body(x, layer):
        params, key = layer
        return nnx.merge(graphdef, params)(split_rows(x), *args, key=key, **kwargs), None

    if remat:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    depth = jax.tree.leaves(params)[0].shape[0]
    return jax.lax.scan(body, x, (params, keys), unroll=unrolled(depth, depth))[0]


def unrolled(steps, depth):
    """The `unroll` of a scan of so many steps in a stack of so many layers: a loop over a few layers costs more than it saves
    (a third of a small model's step on a CPU)."""
    return steps if depth <= 4 else 1
