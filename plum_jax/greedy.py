"""Greedy decoding as one loop over a decoding step, whatever runs the step: the live model or an exported program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Readout(NamedTuple):
    """Tags and span features of R rows at T positions."""

    labels: jax.Array  # int8[R, T] argmax over O, B, I; ties go to the lowest (M 3.3)
    confidence: jax.Array  # float32[R, T] probability of that label
    features: jax.Array  # float32[R, T, W] a span's prompt is the mean of these over its tokens


class Decoded(NamedTuple):
    """What R rows said."""

    generated: jax.Array  # int32[R, max_new_tokens], the end token behind the end
    count: jax.Array  # int32[R] tokens until the end, </s> included
    states: jax.Array  # [R, max_new_tokens, D] after the final norm, one per generated token


def decode(step, token, cache, hidden, *, max_new_tokens, end_token):
    """Repeats a step until every row has said `end_token` or the limit is reached.

    The loop also runs the last token, </s> or the one at the limit, so that every generated token has a state (the
    reference has none for it, D25 of M 10.3).

    Args:
      step: (token int32[R], active bool[R], cache) -> (next token int32[R], state [R, D] of `token`, cache); the cache does
        not grow in rows that are not active.
      token: int32[R] first token of the answers. cache: keys and values of the prompts, with room for `max_new_tokens`.
      hidden: [R, S, D] states of the prompts; gives shape and dtype.

    Returns:
      Decoded.
    """
    rows = hidden.shape[0]

    def more(carry):
        return (carry["at"] < max_new_tokens) & carry["active"].any()

    def body(c):
        token, state, cache = step(c["token"], c["active"], c["cache"])
        return dict(
            at=c["at"] + 1,
            token=token,
            active=c["active"] & (c["token"] != end_token),
            count=c["count"] + c["active"],
            generated=c["generated"].at[:, c["at"]].set(jnp.where(c["active"], c["token"], end_token)),
            states=c["states"].at[:, c["at"]].set(state),
            cache=cache,
        )

    start = dict(
        at=jnp.int32(0), token=token, active=jnp.ones(rows, bool), count=jnp.zeros(rows, jnp.int32),
        generated=jnp.full((rows, max_new_tokens), end_token, jnp.int32),
        states=jnp.zeros((rows, max_new_tokens, hidden.shape[-1]), hidden.dtype), cache=cache,
    )  # fmt: skip
    end = jax.lax.while_loop(more, body, start)
    return Decoded(end["generated"], end["count"], end["states"])


def take_generated(readout, length, max_new_tokens):
    """Readout of whole sequences, int32[R] lengths of their prompts -> Readout of the tokens behind the prompts."""
    at = length[:, None] + jnp.arange(max_new_tokens)
    take = lambda x: jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), 1)  # noqa: E731
    return Readout(*map(take, readout))
