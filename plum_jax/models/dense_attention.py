"""Attention by its formula, for any platform, with a gradient of its own.

With weights p and outputs o = p v, the gradient of a logit is p (do v - sum(do o)) (arXiv 2205.14135, appendix B.2). Kept are
q, k, v, o and the weights before the division by their sum; scales and that division are applied where arrays are small. On a
CPU this takes two thirds of the time of differentiating the formula as it is written.
"""

import functools

import jax
import jax.numpy as jnp

NEVER = -1e30  # the logit of a key that is not seen; finite, so that nothing is inf - inf


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def dense_attention(q, k, v, bias=(), mask=None, lengths=None, causal=False):
    """softmax(q k / sqrt(H) + bias) v over the keys that are seen; logits, softmax and sums in float32.

    Args:
      q: [B, T, N, H]. k, v: [B, S, N, H].
      bias: parts [B, N, T, Y or 1, X or 1] whose sum [B, N, T, Y, X] with Y * X = S is added to the logits; none for no bias.
      mask: bool[B, 1, T or 1, S], lengths: int32[B], causal: what is seen must be so by all three that are given. Every query
        needs a key that it sees.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    return _forward(q, k, v, bias, mask, lengths, causal)[0]


def _forward(q, k, v, bias, mask, lengths, causal):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = _logits(q, k, bias, mask, lengths, causal)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = (_sum("bnts,bnsh->bnth", weights, v) / total).astype(q.dtype)
    return out.swapaxes(1, 2), (q, k, v, out, weights, total, bias)


def _backward(causal, kept, gradient):
    del causal
    q, k, v, out, weights, total, bias = kept
    gradient = gradient.swapaxes(1, 2)
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True) / total
    gradient = (gradient / total).astype(v.dtype)
    of_logits = weights * (_sum("bnth,bnsh->bnts", gradient, v) - inner)
    of_bias = tuple(_like(of_logits, part) for part in bias)
    of_logits = of_logits.astype(q.dtype)
    of_q = _sum("bnts,bnsh->bnth", of_logits, k) * q.shape[-1] ** -0.5
    of_k = _sum("bnth,bnts->bnhs", q, of_logits).swapaxes(2, 3) * q.shape[-1] ** -0.5
    of_v = _sum("bnth,bnts->bnhs", gradient, weights).swapaxes(2, 3)
    return *(x.astype(y.dtype).swapaxes(1, 2) for x, y in ((of_q, q), (of_k, k), (of_v, v))), of_bias, None, None


dense_attention.defvjp(_forward, _backward)


def _logits(q, k, bias, mask, lengths, causal):
    """q [B, N, T, H], k [B, N, S, H] -> float32[B, N, T, S], NEVER where a key is not seen."""
    scale = q.shape[-1] ** -0.5
    logits = _sum("bnth,bnsh->bnts", q * scale, k) if q.dtype == jnp.float32 else _sum("bnth,bnsh->bnts", q, k) * scale
    if bias:
        logits += sum(x.astype(jnp.float32) for x in bias).reshape(logits.shape)
    queries, keys = jnp.arange(q.shape[2])[:, None], jnp.arange(k.shape[2])
    seen = [] if mask is None else [mask]
    if lengths is not None:
        seen.append(keys < lengths[:, None, None, None])
    if causal:
        seen.append(keys <= queries)
    return jnp.where(functools.reduce(jnp.logical_and, seen), logits, NEVER) if seen else logits


def _sum(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _like(gradient, part):
    """Gradient of the sum [B, N, T, Y * X] -> that of a part [B, N, T, Y or 1, X or 1] of it."""
    height, width = part.shape[3:]
    grid = (height, -1) if width == 1 else (-1, width)
    gradient = gradient.reshape(*gradient.shape[:3], *grid)
    axis = tuple(3 + i for i, size in enumerate(part.shape[3:]) if size == 1)
    return gradient.sum(axis, keepdims=True).astype(part.dtype)
