"""Llama-2 decoder: the full forward and the same layers over a key-value cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models.attention import attention, by_platform
from plum_jax.models.layers import Linear, RMSNorm, as_rows, make_stack, merge_heads, run_stack, to_int8
from plum_jax.precision import rounded
from plum_jax.sharding import split_rows

NORMAL = jax.nn.initializers.normal(0.02)  # HF's initializer_range for embeddings and head


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the decoder (M 1.2). LoRA adapters sit on q_proj and v_proj (M 7.2); rank 0 leaves them out.

    int8 stores the kernels of the layers and of the head, and the token table, as int8 with scales (`plum_jax.quantize`);
    adapters, norms and activations keep their dtypes.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    rope_theta: float
    epsilon: float
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    vocab_multiple: int = 256  # the table is padded so that any mesh divides it; the extra logits are masked
    int8: bool = False

    @property
    def padded_vocab(self):
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def lora(self):
        return (self.lora_rank, self.lora_alpha) if self.lora_rank else None


def rotation(positions, half, theta):
    """int32[B, T] -> (cos, sin) float32[B, T, 1, half] of the rotary angles (M 1.2)."""
    angle = positions[..., None, None] * theta ** (-jnp.arange(half) / half)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos_sin):
    """Rotary embedding, rotate-half layout: x [B, T, N, H], and the `rotation` of its positions (M 1.2)."""
    cos, sin = (y.astype(x.dtype) for y in cos_sin)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def write(cache, new, layer, start):
    """New keys or values of one layer, in every row from its start on, in place.

    Rows that are split over a mesh are written where they lie: the scatter has them as a batch axis, and there is none where
    all rows start at 0. A CPU would make all layers float32 to scatter bfloat16: there the layer is taken out and put back.

    Args:
      cache: [L, B, N, size, H]. new: [B, n, N, H]. layer: int32[]. start: int32[B], with room for n more; None: 0 everywhere.

    Returns:
      (cache, its layer [B, N, size, H]), with `new` in them.
    """

    def in_place(cache, new, layer, start):
        cache = _scatter(cache, new, layer, start)
        return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)

    def taken_out(cache, new, layer, start):
        written = _scatter(jax.lax.dynamic_index_in_dim(cache, layer), new, 0, start)
        return jax.lax.dynamic_update_index_in_dim(cache, written, layer, 0), written[0]

    new = new.swapaxes(1, 2).astype(cache.dtype)
    if start is None:
        cache = jax.lax.dynamic_update_slice(cache, new[None], (layer, 0, 0, 0, 0))
        return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
    return by_platform(in_place, {"cpu": taken_out} if cache.dtype == jnp.bfloat16 else {}, cache, new, layer, start)


def _scatter(cache, new, layer, start):
    """The cache of `write` with `new` [B, N, n, H] written."""
    at = jnp.stack([jnp.full_like(start, layer), start], -1)
    dims = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 3),
        operand_batching_dims=(1,), scatter_indices_batching_dims=(0,),
    )  # fmt: skip
    return jax.lax.scatter(cache, at, new, dims, indices_are_sorted=True, unique_indices=True, mode="clip")


class LlamaLayer(nnx.Module):
    """x + Attention(RMS(x)), then x + down(silu(gate) * up) of RMS(x)."""

    def __init__(self, config, rngs):
        width, c = config.width, config
        linear = functools.partial(Linear, int8=c.int8, rngs=rngs)
        self.input_norm = RMSNorm(width, epsilon=c.epsilon)
        self.q_proj = linear(width, width, lora=c.lora)
        self.k_proj = linear(width, width)
        self.v_proj = linear(width, width, lora=c.lora)
        self.o_proj = linear(width, width)
        self.post_attention_norm = RMSNorm(width, epsilon=c.epsilon)
        self.gate_proj = linear(width, c.mlp)
        self.up_proj = linear(width, c.mlp)
        self.down_proj = linear(c.mlp, width)
        self.config = config

    def project(self, x, cos_sin, adapter, key):
        """x [B, T, D] or its rows, `rotation` of its positions -> queries, keys, values [B, T, N, H], rotated."""
        c, shape = self.config, (*cos_sin[0].shape[:2], self.config.heads, -1)
        key_q, key_v = (None, None) if key is None else jax.random.split(key)
        q = self.q_proj(x, adapter=adapter, dropout=c.lora_dropout, key=key_q).reshape(shape)
        v = self.v_proj(x, adapter=adapter, dropout=c.lora_dropout, key=key_v).reshape(shape)
        k = self.k_proj(x).reshape(shape)
        return rotate(q, cos_sin), rotate(k, cos_sin), v

    def mlp(self, x):
        y = self.post_attention_norm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(y)) * self.up_proj(y))

    def __call__(self, x, lengths, positions, adapter, *, key=None):
        """x [B, T, D], lengths int32[B], positions int32[B, T] -> [B, T, D]."""
        rows = as_rows(x)
        q, k, v = self.project(self.input_norm(rows), self.rotation(positions), adapter, key)
        y = attention(q, k, v, causal=True, lengths=lengths)
        return self.mlp(rows + self.o_proj(as_rows(merge_heads(y)))).reshape(x.shape)

    def rotation(self, positions):
        return rotation(positions, self.config.width // self.config.heads // 2, self.config.rope_theta)

    def extend(self, x, positions, mask, adapter, keys, values, layer):
        """This layer, the `layer`-th of the stack, for n new tokens that also see the cache.

        Args:
          x: [B, n, D]. mask: as of `Llama.extend`, None where the cache is empty.
          keys, values: [L, B, N, size, H] of all layers.

        Returns:
          (x, keys, values) with the new tokens written.
        """
        q, k, v = self.project(self.input_norm(x), self.rotation(positions), adapter, None)
        start = None if mask is None else positions[:, 0]
        keys, all_k = write(keys, k, layer, start)
        values, all_v = write(values, v, layer, start)
        if mask is not None:
            k, v = (x.astype(q.dtype).swapaxes(1, 2) for x in (all_k, all_v))
        y = attention(q, k, v, mask=mask, causal=mask is None)
        return self.mlp(x + self.o_proj(merge_heads(y))), keys, values


class Llama(nnx.Module):
    """Token table, decoder layers, final norm and head. Works on embeddings, so that image features can be spliced in."""

    def __init__(self, config, rngs):
        self.config = config
        table, scale = NORMAL(rngs.params(), (config.padded_vocab, config.width)), None
        if config.int8:
            table, scale = to_int8(table, -1)
        self.embed = nnx.Param(table)
        self.embed_scale = nnx.Param(scale) if config.int8 else None
        self.layers = make_stack(lambda r: LlamaLayer(config, r), config.depth, rngs)
        self.norm = RMSNorm(config.width, epsilon=config.epsilon)
        self.lm_head = Linear(config.width, config.padded_vocab, int8=config.int8, kernel_init=NORMAL, rngs=rngs)

    def token_embeddings(self, tokens):
        """int32[...] -> [..., D], in the dtype of the table, float32 where that is int8."""
        rows = self.embed[...][tokens]
        if self.embed_scale is None:
            return rows
        return rows.astype(jnp.float32) * self.embed_scale[...][tokens][..., None]

    def __call__(self, embeds, lengths, *, adapter=True, key=None, policy=None, remat=True):
        """Full causal forward.

        Args:
          embeds: [B, T, D]. lengths: int32[B] valid leading positions.
          adapter: False runs the base model without LoRA, which is the reference of the KL term (M 6.1).
          key: LoRA dropout key, None for none.

        Returns:
          Hidden states [B, T, D] after the final norm; `logits` of them are the next-token logits.
        """
        positions = jnp.broadcast_to(jnp.arange(embeds.shape[1]), embeds.shape[:2])
        keys = None if key is None else jax.random.split(key, self.config.depth)
        x = run_stack(self.layers, embeds, lengths, positions, adapter, keys=keys, policy=policy, remat=remat)
        return self.norm(x)

    def logits(self, hidden, dtype="float32"):
        """[..., D] -> float32[..., padded vocabulary], the padding at -1e9.

        dtype: "float32" keeps the sums of products as they are; "bfloat16" rounds them, which is all that the reference's
        runs keep of a logit (M D38).
        """
        logits = rounded(split_rows(self.lm_head(hidden, out_dtype=jnp.float32), last="tensor"), dtype)
        if self.config.padded_vocab == self.config.vocab_size:
            return logits
        return jnp.where(jnp.arange(self.config.padded_vocab) < self.config.vocab_size, logits, -1e9)

    def empty_cache(self, batch, size, dtype=jnp.float32):
        """(keys, values [L, B, N, size, H], length int32[B]) with nothing in it. A head's positions lie side by side, as the
        products of a step read them."""
        c = self.config
        zeros = jnp.zeros((c.depth, batch, c.heads, size, c.width // c.heads), dtype)
        return zeros, zeros, jnp.zeros(batch, jnp.int32)

    def extend(self, embeds, cache, lengths, *, adapter=True, positions=None, mask=None, empty=False):
        """Run n more tokens per row behind a cache: prefill (empty cache), suffixes (n > 1) or one decoding step (n = 1).

        Args:
          embeds: [B, n, D], right-padded. The cache must have room for n more positions in every row.
          cache: (keys, values [L, B, N, size, H], length int32[B]).
          lengths: int32[B], how many of the n are valid; the cache grows by that much, padding is overwritten later.
          positions: int32[B, n] in the text, where the tokens are not simply the next ones. The first is the next.
          mask: bool[B, 1, n, size], which places of the cache a token sees, its own among them; None: those before it.
          empty: the cache holds nothing yet. The tokens see one another as in the full forward, by the kernels that take no
            mask, and nothing of the cache is read. Not with `mask`.

        Returns:
          (hidden [B, n, D] after the final norm, cache).
        """
        keys, values, start = cache
        n, size = embeds.shape[1], keys.shape[3]
        positions = start[:, None] + jnp.arange(n) if positions is None else positions
        if mask is None and not empty:
            mask = (jnp.arange(size) <= positions[..., None])[:, None]  # [B, 1, n, size]: causal, and nothing past the token
        graphdef, params = nnx.split(self.layers)

        def body(carry, layer):  # the cache is in the carry, which XLA writes in place: as an output it would be a second one
            x, keys, values = carry
            layer_params, index = layer
            return nnx.merge(graphdef, layer_params).extend(x, positions, mask, adapter, keys, values, index), None

        (x, keys, values), _ = jax.lax.scan(body, (embeds, keys, values), (params, jnp.arange(len(keys))))
        return self.norm(x), (keys, values, start + lengths)
