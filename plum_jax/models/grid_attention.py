"""Attention over a square of positions with SAM's decomposed relative positions, in the form that suits the platform."""

import jax
import jax.numpy as jnp

from plum_jax.models.attention import by_platform, fused
from plum_jax.models.dense_attention import dense_attention

LOOP_FROM = 2**19  # logits of all heads for one square, from which one head at a time is faster and 64 MiB instead of 1 GiB


def grid_attention(q, k, v, rel_h, rel_w):
    """Attention with the bias rel_h[query, y] + rel_w[query, x] on the logit of the key at (y, x) (M 4.1).

    Args:
      q, k, v: [B, Y, X, N, H]. rel_h: [B, Y, X, N, Y], rel_w: [B, Y, X, N, X].

    Returns:
      [B, Y * X, N, H] in the dtype of q.
    """
    b, height, width, heads, head = q.shape
    wide = -(-(head + height + width) // 8) * 8
    shape = jax.ShapeDtypeStruct((b, height * width, heads, wide), q.dtype)
    kernels = {name: widened(kernel, wide) for name, kernel in fused(shape, shape, scale=1.0).items()}
    return by_platform(with_bias, kernels, q, k, v, rel_h, rel_w)


def with_bias(q, k, v, rel_h, rel_w, *, loop_from=LOOP_FROM):
    """The bias is a broadcast sum that is added where the logits are read: it is not written. Large squares run head by head:
    twice as fast on a CPU, whose caches hold the logits of one head."""
    b, height, width, heads, head = q.shape

    def attend(q, k, v, rel_h, rel_w):
        q, k, v, rel_h, rel_w = (x.reshape(b, height * width, -1, x.shape[-1]) for x in (q, k, v, rel_h, rel_w))
        rel_h, rel_w = (x.swapaxes(1, 2) for x in (rel_h, rel_w))
        return dense_attention(q, k, v, (rel_h[..., :, None], rel_w[..., None, :]))

    if heads * (height * width) ** 2 < loop_from:
        return attend(q, k, v, rel_h, rel_w)
    by_head = tuple(jnp.moveaxis(x, 3, 0) for x in (q, k, v, rel_h, rel_w))
    return jnp.moveaxis(jax.lax.map(lambda x: attend(*x)[:, :, 0], by_head), 0, 2)


def widened(kernel, wide):
    """The bias as a part of the dot product: rel_h and rel_w join q, one-hot rows and columns join k.

    Any kernel without a bias then applies. Heads of queries and keys grow to `wide`: 80 to 112 in the windows of ViT-H and to
    208 in its global blocks.
    """

    def attend(q, k, v, rel_h, rel_w):
        b, height, width, heads, head = q.shape
        rows = jnp.broadcast_to(jnp.eye(height, dtype=k.dtype)[:, None, None], (b, height, width, heads, height))
        columns = jnp.broadcast_to(jnp.eye(width, dtype=k.dtype)[:, None], (b, height, width, heads, width))
        q = jnp.concatenate([q * head**-0.5, rel_h, rel_w], -1)
        k = jnp.concatenate([k, rows, columns], -1)
        q, k = (jnp.pad(x, [(0, 0)] * 4 + [(0, wide - x.shape[-1])]) for x in (q, k))
        return kernel(*(x.reshape(b, height * width, heads, -1) for x in (q, k, v)))

    return attend
