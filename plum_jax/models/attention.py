"""Scaled dot-product attention: the one function that chooses a kernel; models never mention a platform.

| program for | kernel | takes |
| --- | --- | --- |
| CUDA, Ampere or newer | flash attention of cuDNN | bfloat16, head size a multiple of 8, at most 256 (128 before Hopper) |
| TPU | splash attention | bfloat16, at least 128 queries and keys, any head size |
| anything else, or with a mask | the formula (`dense_attention`) | everything |

float32 stays with the formula, which honours the precision of matrix products that is set. So do sizes that are symbols
(`plum export`): such a program is for any size on any platform.

The choice falls where a program is lowered and for the platform that it is lowered for: a CPU compiles programs for TPU,
and a machine with a GPU runs programs on its CPU. A kernel is only traced where its platform is in reach (`_tpu_in_reach`,
`_cuda_capability`), so that programs for CPU alone pay nothing for it.
"""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from plum_jax.models.dense_attention import dense_attention
from plum_jax.sharding import ROWS

HEADS = "tensor"  # the mesh axis that the weights of heads are split over


def attention(q, k, v, *, causal=False, lengths=None, mask=None):
    """Scaled dot-product attention with the softmax in float32.

    Args:
      q: [B, T, N, H]. k, v: [B, S, K, H] with N a multiple of K.
      causal: query t sees keys 0..t.
      lengths: int32[B], number of valid leading keys. Padding queries look at them as well, as in the reference, whose tag
        loss covers padding (M 6); a row of length 0 looks at its first key, so that nothing is ever 0 / 0. All kernels
        agree on both.
      mask: bool[B, 1, T, S] or [B, 1, 1, S], True where a query may look; every query needs at least one key.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    lengths = None if lengths is None else jnp.maximum(lengths, 1)
    shared = q.shape[2] // k.shape[2]

    def formula(q, k, v, lengths):
        k, v = (x if shared == 1 else jnp.repeat(x, shared, 2) for x in (k, v))
        return dense_attention(q, k, v, (), mask, lengths, causal)

    return by_platform(formula, fused(q, k, causal=causal) if mask is None else {}, q, k, v, lengths)


def by_platform(default, kernels, *arrays):
    """default(*arrays), or kernels[platform](*arrays) in a program for that platform."""
    return jax.lax.platform_dependent(*arrays, default=default, **kernels) if kernels else default(*arrays)


def fused(q, k, *, causal=False, scale=None):
    """The kernels for queries q and keys k, of which only shapes and dtypes are looked at.

    Args:
      scale: of the logits; None for 1 / sqrt(H).

    Returns:
      {platform: kernel(q, k, v, lengths)} of the platforms that are in reach and whose kernel takes such arrays.
    """
    queries, keys, head = q.shape[1], k.shape[1], q.shape[-1]
    if q.dtype != jnp.bfloat16 or not all(isinstance(size, int) for size in (*q.shape, *k.shape)):
        return {}
    kernels, capability = {}, _cuda_capability()
    if _tpu_in_reach() and min(queries, keys) >= 128:  # a block; XLA does less with fewer than by padding
        from plum_jax.models.splash import splash_attention  # only here: it takes half a second

        kernels["tpu"] = functools.partial(over_mesh, functools.partial(splash_attention, causal=causal, scale=scale))
    if capability >= (8, 0) and queries > 1 and head % 8 == 0 and head <= (256 if capability >= (9, 0) else 128):
        kernels["cuda"] = functools.partial(over_mesh, functools.partial(cudnn_attention, causal=causal, scale=scale))
    return kernels


def cudnn_attention(q, k, v, lengths=None, *, causal, scale):
    """`attention` without a mask by cuDNN, which wants heads of one size: narrower values [B, S, K, V] are padded."""
    padded = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - v.shape[-1])])
    out = jax.nn.dot_product_attention(
        q, k, padded, scale=scale, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[..., : v.shape[-1]]


def over_mesh(kernel, q, k, v, lengths=None):
    """kernel(q, k, v, lengths) on the rows and heads of each device: XLA cannot split a kernel as it splits its own operations.

    Rows are split over `data` and `fsdp`, heads over `tensor`, where the sizes divide; else each device does them all. Axes
    that a `jax.shard_map` around this has split already are left alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = {axis: mesh.shape[axis] for axis in mesh.auto_axes}
    if all(size == 1 for size in axes.values()):
        return kernel(q, k, v, lengths)
    rows, parts = [], 1
    for axis in ROWS:
        if q.shape[0] % (parts * axes.get(axis, 1)) == 0 and axis in axes:
            rows, parts = [*rows, axis], parts * axes[axis]
    heads = HEADS if HEADS in axes and q.shape[2] % axes[HEADS] == 0 and k.shape[2] % axes[HEADS] == 0 else None
    split = P(tuple(rows), None, heads)
    run = jax.shard_map(
        kernel, in_specs=(split, split, split, P(tuple(rows))), out_specs=split, axis_names=set(axes), check_vma=False
    )
    return run(q, k, v, lengths)


def _tpu_in_reach():
    """Whether a program traced now may be one for TPU: by the mesh that is set (of a topology, perhaps), or this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "tpu" or (device is not None and device.device_kind.startswith("TPU"))


def _cuda_capability():
    """Compute capability of this machine's CUDA devices, (9, 0) for Hopper; (0, 0) without one. cuDNN is asked for what it
    can do while the program is traced, so that a machine without it cannot trace for it."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.local_devices()[0], "compute_capability", "")))
    return tuple(map(int, found.groups())) if found else (0, 0)
