"""BIO labels -> fixed span slots, and pooling over them. Pure functions of one row; vmap them over rows."""

import jax
import jax.numpy as jnp


def span_slots(labels, max_spans):
    """BIO labels int[T] (O = 0, B = 1, I = 2) -> bool[N, T]: slot n marks the tokens of the n-th span, left to right.

    The decoding rules of the reference (M 3.3): a B closes an open span and opens the next, an I continues an open span
    and is outside otherwise, an O closes. Spans past max_spans are dropped.
    """
    t = jnp.arange(labels.shape[-1])
    last_not_i = jax.lax.cummax(jnp.where(labels != 2, t, -1))
    is_open = (last_not_i >= 0) & (labels[last_not_i] == 1)
    index = jnp.cumsum(labels == 1) - 1
    return is_open & (index == jnp.arange(max_spans)[:, None])


def slots_of(span_of_token, max_spans):
    """int[T] (0 none, n + 1 slot n) -> bool[N, T], the same form as `span_slots` gives."""
    return span_of_token == jnp.arange(1, max_spans + 1)[:, None]


def pool_spans(features, slots):
    """features [T, W], slots bool[N, T] -> mean over the tokens of each slot [N, W]; zeros for an empty slot."""
    weight = slots / jnp.maximum(slots.sum(-1, keepdims=True), 1)
    return weight.astype(features.dtype) @ features
