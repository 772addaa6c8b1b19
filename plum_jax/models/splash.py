"""Splash attention, JAX's Pallas kernel for TPU, with the padding that it needs."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

LANES = 128  # blocks of queries and keys, and the heads of values, are multiples of it
LARGEST_BLOCK = 512


def splash_attention(q, k, v, lengths=None, *, causal=False, scale=None, interpret=False):
    """Attention in blocks, forward and backward, without the matrix of weights in memory.

    Args:
      q: [B, T, N, H]. k: [B, S, K, H], v: [B, S, K, V], N a multiple of K.
      lengths: int32[B], number of valid leading keys, at least 1; None for all. Every query, padding or not, sees them.
      causal: query t sees keys 0..t.
      scale: of the logits; None for 1 / sqrt(H). The kernel has none, so q is multiplied, in its own dtype.
      interpret: run it as ordinary operations, on any platform: for tests.

    Returns:
      [B, T, N, V] in the dtype of q.
    """
    (_, queries, heads, head), keys, value = q.shape, k.shape[1], v.shape[-1]
    block_q, block_k = block_size(queries), block_size(keys)
    q = pad(q * (head**-0.5 if scale is None else scale), block_q)
    k, v = pad(k, block_k), pad(v, block_k)
    shape = q.shape[1], k.shape[1]
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask(shape) if causal else masks.FullMask(shape)] * heads),
        block_sizes=block_sizes(block_q, block_k),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    if lengths is None and (k.shape[1] == keys or (causal and queries == keys)):  # no query that counts sees padding
        out = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)))
    else:
        seen = jnp.arange(k.shape[1]) < (jnp.full(q.shape[0], keys) if lengths is None else lengths)[:, None]
        segments = kernels.SegmentIds(jnp.ones(q.shape[:2], jnp.int32), seen.astype(jnp.int32))  # equal numbers see each other
        out = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)), segments)
    return out.swapaxes(1, 2)[:, :queries, :, :value]


def block_size(length):
    """How many positions are worked on at a time: the fewest equal blocks of at most LARGEST_BLOCK, in whole LANES."""
    blocks = -(-length // LARGEST_BLOCK)
    return -(-length // (blocks * LANES)) * LANES


def block_sizes(block_q, block_k):
    """The same blocks for the forward pass and the two kernels of the backward pass."""
    return kernels.BlockSizes(
        block_q=block_q, block_kv=block_k, block_kv_compute=block_k,
        block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k,
        block_q_dq=block_q, block_kv_dq=block_k,
    )  # fmt: skip


def pad(x, block):
    """[B, T, N, H] with zeros to whole blocks of T and whole LANES of H, which an array on a TPU takes up anyway."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, -x.shape[-1] % LANES)))
