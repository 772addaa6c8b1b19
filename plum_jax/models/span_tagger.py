"""The span extractor: a bidirectional encoder layer over the decoder's states, and a 3-way tag per token (M 3)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models.attention import attention
from plum_jax.models.layers import LayerNorm, Linear, drop, merge_heads, split_heads

XAVIER = jax.nn.initializers.xavier_uniform()
PACKED_XAVIER = jax.nn.initializers.variance_scaling(1 / 2, "fan_avg", "uniform")  # M 3.1: fan_out of the packed q, k, v is 3d


@dataclasses.dataclass(frozen=True)
class TaggerConfig:
    """`mlp` is 2048 and `heads` 8 in the reference whatever its flags say (M 3.1); dropout 0.1 there."""

    heads: int
    mlp: int
    epsilon: float
    dropout: float
    bidirectional: bool = True  # False feeds the decoder's own states to the classifier


class BidirectionalEncoder(nnx.Module):
    """One post-norm transformer encoder layer with ReLU and no positions: torch.nn.TransformerEncoderLayer's defaults."""

    def __init__(self, width, config, rngs):
        self.config = config
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, Linear(width, width, bias=True, kernel_init=PACKED_XAVIER, rngs=rngs))
        self.out_proj = Linear(width, width, bias=True, kernel_init=XAVIER, rngs=rngs)
        self.norm1 = LayerNorm(width, epsilon=config.epsilon)
        self.linear1 = Linear(width, config.mlp, bias=True, kernel_init=XAVIER, rngs=rngs)
        self.linear2 = Linear(config.mlp, width, bias=True, kernel_init=XAVIER, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=config.epsilon)

    def __call__(self, x, valid, *, key=None):
        """x [B, T, D], valid bool[B, T] (keys to look at) -> [B, T, D]. `key` switches the four dropouts on."""
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        rate = self.config.dropout
        x = self.norm1(x + drop(self.attend(x, valid, keys[0]), rate, keys[1]))
        y = drop(jax.nn.relu(self.linear1(x)), rate, keys[2])
        return self.norm2(x + drop(self.linear2(y), rate, keys[3]))

    def attend(self, x, valid, key):
        q, k, v = (split_heads(p(x), self.config.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        if key is None or self.config.dropout == 0:
            return self.out_proj(merge_heads(attention(q, k, v, mask=valid[:, None, None])))
        weights = jnp.einsum("btnh,bsnh->bnts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(valid[:, None, None], weights, -1e30))
        weights = drop(weights, self.config.dropout, key).astype(x.dtype)  # on the weights, which no fused kernel offers
        return self.out_proj(merge_heads(jnp.einsum("bnts,bsnh->btnh", weights, v)))


class SpanTagger(nnx.Module):
    """Decoder states -> logits of O, B, I for every position."""

    def __init__(self, width, config, rngs):
        self.encoder = BidirectionalEncoder(width, config, rngs) if config.bidirectional else None
        self.hidden = Linear(width, width, bias=True, rngs=rngs)
        self.out = Linear(width, 3, bias=True, rngs=rngs)

    def __call__(self, hidden, valid, *, key=None):
        """hidden [B, T, D], valid bool[B, T] -> float32[B, T, 3]."""
        x = hidden if self.encoder is None else self.encoder(hidden, valid, key=key)
        return self.out(jax.nn.relu(self.hidden(x))).astype(jnp.float32)


class SpanProjector(nnx.Module):
    """Decoder states -> the width of SAM's prompts; a span's prompt is the mean of this over its tokens (M 3.3)."""

    def __init__(self, width, out_width, rngs):
        self.hidden = Linear(width, width, bias=True, rngs=rngs)
        self.out = Linear(width, out_width, bias=True, rngs=rngs)

    def __call__(self, hidden):
        """[..., D] -> [..., W]."""
        return self.out(jax.nn.relu(self.hidden(hidden)))
