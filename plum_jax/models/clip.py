"""CLIP's vision transformer as the language model sees it: patch features of the last but one layer (M 1.3)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models.attention import attention
from plum_jax.models.layers import LayerNorm, Linear, as_rows, make_stack, merge_heads, quick_gelu, run_stack
from plum_jax.models.patches import PatchConv, sincos_positions, to_patches

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """depth counts the layers that run: 23 of the 24 of ViT-L/14, whose last layer LLaVA does not use."""

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    epsilon: float

    @property
    def grid(self):
        return self.image_size // self.patch


def normalise(pixels, dtype):
    """uint8[B, I, I, 3] -> dtype[B, I, I, 3], mean and deviation of CLIP's training images."""
    x = pixels.astype(jnp.float32) / 255
    return ((x - jnp.array(MEAN)) / jnp.array(STD)).astype(dtype)


class ClipLayer(nnx.Module):
    """Pre-norm transformer layer: [B, T, D] -> [B, T, D]."""

    def __init__(self, config, *, rngs):
        d = config.width
        self.norm1, self.norm2 = (LayerNorm(d, epsilon=config.epsilon) for _ in range(2))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(d, d, bias=True, rngs=rngs) for _ in range(4))
        self.linear1 = Linear(d, config.mlp, bias=True, rngs=rngs)
        self.linear2 = Linear(config.mlp, d, bias=True, rngs=rngs)
        self.heads = config.heads

    def __call__(self, x, *, key=None):
        del key  # CLIP has no dropout
        rows = as_rows(x)
        y = self.norm1(rows)
        q, k, v = (proj(y).reshape(*x.shape[:2], self.heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
        rows = rows + self.out_proj(as_rows(merge_heads(attention(q, k, v))))
        rows = rows + self.linear2(quick_gelu(self.linear1(self.norm2(rows))))
        return rows.reshape(x.shape)


class Clip(nnx.Module):
    """Normalised pixels [B, I, I, 3] -> [B, P, D], row by row over the grid of patches; the class token is dropped."""

    def __init__(self, config, *, rngs):
        d = config.width
        positions = sincos_positions(config.grid, d).reshape(-1, d)
        self.patch_embed = PatchConv(config.patch, 3, d, bias=False, rngs=rngs)
        self.class_embed = nnx.Param(jax.random.normal(rngs.params(), (d,)) * d**-0.5)
        self.position_embed = nnx.Param(jnp.concatenate([jnp.zeros((1, d)), positions]))
        self.norm = LayerNorm(d, epsilon=config.epsilon)
        self.layers = make_stack(lambda r: ClipLayer(config, rngs=r), config.depth, rngs)
        self.config = config

    def __call__(self, pixels, *, remat=False):
        """remat: recompute every layer in the backward pass. Not needed where the tower is frozen, as in the paper."""
        return run_stack(self.layers, self.embed(pixels), remat=remat)[:, 1:]

    def embed(self, pixels):
        """-> [B, 1 + P, D], what the first layer takes, class token first."""
        x = self.patch_embed(to_patches(pixels, self.config.patch))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_embed[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        return self.norm(jnp.concatenate([first, x], 1) + self.position_embed[...].astype(x.dtype))
