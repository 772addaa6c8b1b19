"""Mask feedback: each span is decoded with the masks of the spans before it as its dense prompt (M 5, arXiv 2505.20759).

The reference encodes every past mask again at every step and attends to all of them. Here one scan over span ranks carries
a running softmax: the query of a location is the same at every step, so a past mask contributes to a maximum, a sum and a
weighted sum, and is then forgotten. Time is linear in the number of spans, memory constant, the result exact, gradients
through earlier masks included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models.layers import Linear, split_heads

PACKED_XAVIER = jax.nn.initializers.variance_scaling(0.5, "fan_in", "uniform")  # limits of torch's packed [3 D, D] matrix


class Folded(NamedTuple):
    """The linear layers of the pooler, multiplied with each other once per batch; P locations, N heads, c mask channels."""

    query: jax.Array  # float32[P, N, c] such that maps @ query is the attention logit, up to what all masks share
    value: jax.Array  # float32[N, c, D] from the attended maps of each head to the output
    constant: jax.Array  # float32[P, D] the part of the output that depends on no mask


class PoolState(NamedTuple):
    """Softmax over the masks so far, per row, location and head."""

    top: jax.Array  # float32[R, P, N] largest logit
    total: jax.Array  # float32[R, P, N] sum of exp(logit - top)
    maps: jax.Array  # float32[R, P, N, c] sum of exp(logit - top) * maps
    seen: jax.Array  # bool[R] whether any mask was appended


def film_layer(width, channels, rngs):
    """Linear from a span embedding to scales and shifts, initialised as torch does, random bias included (M 5.2)."""
    layer = Linear(width, 2 * channels, bias=True, rngs=rngs)
    layer.bias = nnx.Param(jax.random.uniform(rngs.params(), (2 * channels,), minval=-(width**-0.5), maxval=width**-0.5))
    return layer


class Feedback(nnx.Module):
    """Pools past masks, each modulated by its span embedding (FiLM), with one learned query per location.

    The convolutions are those of the prompt encoder, which is an argument. FiLM starts random, as in the reference: the
    first training steps see random dense prompts from the second span on (M 5.2, D21). `film3` belongs to the 1x1
    convolution and is never called there either: a parameter so that checkpoints convert both ways.
    """

    def __init__(self, width, grid, heads, mask_channels, *, rngs):
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (grid * grid, width)))
        packed = [Linear(width, width, bias=True, kernel_init=PACKED_XAVIER, rngs=rngs) for _ in range(3)]
        self.q_proj, self.k_proj, self.v_proj = packed
        self.out_proj = Linear(width, width, bias=True, rngs=rngs)
        self.film1 = film_layer(width, mask_channels // 4, rngs)
        self.film2 = film_layer(width, mask_channels, rngs)
        self.film3 = film_layer(width, width, rngs)
        self.heads = heads

    def fold(self, prompt_encoder):
        """Everything between the 16 channels of a mask and the dense prompt is linear, but for the softmax weights.

        Keys, values and the output projection are therefore products of small matrices with the 1x1 convolution of the
        prompt encoder, and the state lives in mask channels: 16 instead of 32 numbers per head and location. What adds
        the same to all logits of a location (positional encoding, biases) cancels in the softmax; in the values it
        becomes a constant. -> Folded.
        """
        with jax.default_matmul_precision("highest"):
            kernel, bias = (p[...].astype(jnp.float32) for p in (prompt_encoder.conv3.kernel, prompt_encoder.conv3.bias))
            query = split_heads(self.q_proj(self.queries[...].astype(jnp.float32)), self.heads)
            query = query / query.shape[-1] ** 0.5
            keys, values = (kernel @ p.kernel[...].astype(jnp.float32) for p in (self.k_proj, self.v_proj))
            out = self.out_proj.kernel[...].astype(jnp.float32).reshape(self.heads, -1, bias.shape[0])
            pe = prompt_encoder.dense_pe().reshape(-1, bias.shape[0])
            return Folded(
                query=jnp.einsum("pnh,cnh->pnc", query, split_heads(keys, self.heads)),
                value=jnp.einsum("cnh,nhd->ncd", split_heads(values, self.heads), out),
                constant=self.out_proj(self.v_proj(pe + bias)),
            )

    def encode(self, prompt_encoder, low_res, span_embed):
        """Mask logits [R, 4g, 4g] and span embeddings [R, D] -> float32[R, P, c], what a mask is remembered by."""
        embed = span_embed.astype(jnp.float32)
        scale1, shift1 = jnp.split(self.film1(embed)[:, None, None, None, None], 2, -1)
        scale2, shift2 = jnp.split(self.film2(embed)[:, None, None], 2, -1)
        maps = prompt_encoder.mask_maps(low_res.astype(jnp.float32), ((1 + scale1, shift1), (1 + scale2, shift2)))
        return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def start(rows, folded):
    """PoolState of `rows` rows without a mask."""
    p, n, c = folded.query.shape
    return PoolState(jnp.full((rows, p, n), -1e30), jnp.zeros((rows, p, n)), jnp.zeros((rows, p, n, c)), jnp.zeros(rows, bool))


def append(state, folded, maps, keep):
    """State with one more mask in the rows where `keep` bool[R]; the other rows stay as they are.

    The maximum only guards against overflow, the result does not depend on it: no gradient goes through it.
    """
    logit = jnp.einsum("rpc,pnc->rpn", maps, folded.query)
    keep_rpn = keep[:, None, None]
    top = jax.lax.stop_gradient(jnp.where(keep_rpn, jnp.maximum(state.top, logit), state.top))
    old = jnp.exp(jax.lax.stop_gradient(state.top) - top)
    new = jnp.where(keep_rpn, jnp.exp(jnp.where(keep_rpn, logit - top, 0.0)), 0.0)  # inner where: no inf, hence no NaN gradient
    return PoolState(
        top, state.total * old + new, state.maps * old[..., None] + new[..., None] * maps[:, :, None, :], state.seen | keep
    )


def dense(state, folded, no_mask_embed):
    """-> dense prompt float32[R, P, D]: the pooled masks, or `no_mask_embed` [D] in rows without a mask."""
    total = jnp.where(state.seen[:, None, None], state.total, 1.0)
    pooled = jnp.einsum("rpnc,ncd->rpd", state.maps / total[..., None], folded.value) + folded.constant
    return jnp.where(state.seen[:, None, None], pooled, no_mask_embed.astype(jnp.float32))


def decode_spans(prompt_encoder, mask_decoder, feedback, image_embeddings, span_embeds, span_valid, *, remat=True):
    """Masks of up to N spans per row, in the order of the text; each sees the masks of the valid spans before it.

    Args:
      prompt_encoder, mask_decoder: modules of sam_decoder.py.
      feedback: `Feedback`, or None: every span is decoded with SAM's no-mask embedding, all ranks in one batch.
      image_embeddings: [R, g, g, D]. span_embeds: [R, N, D]. span_valid: bool[R, N].
      remat: recompute each rank in the backward pass instead of keeping the activations of N decoder runs.

    Returns:
      (low_res, iou): float32[R, N, 4g, 4g] and float32[R, N], zeros where a slot is not valid.
    """
    rows, ranks, width = span_embeds.shape
    g = image_embeddings.shape[1]
    image_pe, no_mask = prompt_encoder.dense_pe(), prompt_encoder.no_mask_embed[...]

    def decode(images, embeds, valid, prompt):
        low_res, iou = mask_decoder(images, embeds[:, None], prompt, image_pe)
        return jnp.where(valid[:, None, None], low_res, 0.0), jnp.where(valid, iou, 0.0)

    if feedback is None:
        images = jnp.repeat(image_embeddings, ranks, 0)
        run = jax.checkpoint(decode) if remat else decode
        low_res, iou = run(images, span_embeds.reshape(-1, width), span_valid.reshape(-1), no_mask)
        return low_res.reshape(rows, ranks, 4 * g, 4 * g), iou.reshape(rows, ranks)

    folded = feedback.fold(prompt_encoder)

    def used(state, embed, keep):
        prompt = dense(state, folded, no_mask).reshape(rows, g, g, width)
        low_res, iou = decode(image_embeddings, embed, keep, prompt)
        return append(state, folded, feedback.encode(prompt_encoder, low_res, embed), keep), (low_res, iou)

    def unused(state, embed, keep):
        del embed, keep
        return state, (jnp.zeros((rows, 4 * g, 4 * g)), jnp.zeros(rows))

    def body(state, span):
        embed, keep = span
        return jax.lax.cond(keep.any(), used, unused, state, embed, keep)

    ranked = span_embeds.swapaxes(0, 1), span_valid.T
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    low_res, iou = jax.lax.scan(body, start(rows, folded), ranked)[1]
    return low_res.swapaxes(0, 1), iou.T
