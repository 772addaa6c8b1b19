"""SAM's image encoder: a ViT that attends inside windows, every few blocks globally, and a convolutional neck (M 4.1)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models.grid_attention import grid_attention
from plum_jax.models.layers import UNIFORM, LayerNorm, Linear, as_rows, gelu, make_stack, merge_heads, run_stack, unrolled
from plum_jax.models.patches import PatchConv, from_patches, sincos_positions, to_patches

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class SamEncoderConfig:
    """global_blocks: 0-based, every n-th block of the depth: (7, 15, 23, 31) of 32 in ViT-H."""

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    window: int
    global_blocks: tuple
    epsilon: float
    out_width: int

    def __post_init__(self):
        period = self.depth // max(len(self.global_blocks), 1)
        if tuple(self.global_blocks) != tuple(range(period - 1, self.depth, period)) or period < 2:
            raise ValueError(f"global_blocks {self.global_blocks} must be every n-th of {self.depth} blocks, n >= 2")

    @property
    def grid(self):
        return self.image_size // self.patch


def normalise(pixels, resized_hw, dtype):
    """uint8[M, S, S, 3] -> dtype[M, S, S, 3], SAM's mean and deviation; 0 outside the resized image (M 1.4).

    Args:
      pixels: image in the top left corner; what is outside of it is not read.
      resized_hw: int32[M, 2], height and width of that image.
    """
    x = (pixels.astype(jnp.float32) - jnp.array(MEAN)) / jnp.array(STD)
    rows, columns = (jnp.arange(pixels.shape[1]) < resized_hw[:, i, None] for i in (0, 1))
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0).astype(dtype)


class SamAttention(nnx.Module):
    """Attention over a square of K x K tokens with decomposed relative positions: [B, K, K, D] -> [B, K, K, D]."""

    def __init__(self, config, size, *, rngs):
        d = config.width
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(d, d, bias=True, rngs=rngs) for _ in range(4))
        self.rel_pos_h, self.rel_pos_w = (nnx.Param(jnp.zeros((2 * size - 1, d // config.heads))) for _ in range(2))
        self.heads = config.heads

    def __call__(self, x):
        """The positions of a query are seen through rel_h and rel_w, products of it with one vector per row or column offset;
        it is not scaled in them."""
        size = x.shape[1]
        rows, shape = as_rows(x), (*x.shape[:3], self.heads, -1)
        q, k, v = (proj(rows).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        offset = jnp.arange(size)[:, None] - jnp.arange(size) + size - 1  # row: of the query, column: of the key
        rel_h = jnp.einsum("byxnh,yjh->byxnj", q, self.rel_pos_h[...].astype(x.dtype)[offset])
        rel_w = jnp.einsum("byxnh,xjh->byxnj", q, self.rel_pos_w[...].astype(x.dtype)[offset])
        return self.out_proj(as_rows(merge_heads(grid_attention(q, k, v, rel_h, rel_w)))).reshape(x.shape)


class SamBlock(nnx.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)): [B, g, g, D]. window 0 attends globally."""

    def __init__(self, config, window, *, rngs):
        d = config.width
        self.norm1, self.norm2 = (LayerNorm(d, epsilon=config.epsilon) for _ in range(2))
        self.attention = SamAttention(config, window or config.grid, rngs=rngs)
        self.linear1 = Linear(d, config.mlp, bias=True, rngs=rngs)
        self.linear2 = Linear(config.mlp, d, bias=True, rngs=rngs)
        self.window = window

    def __call__(self, x, *, key=None):
        del key  # SAM has no dropout
        rows = as_rows(x)
        y = self.norm1(rows).reshape(x.shape)
        rows = rows + as_rows(self.attend_in_windows(y) if self.window else self.attention(y))
        rows = rows + self.linear2(gelu(self.linear1(self.norm2(rows))))
        return rows.reshape(x.shape)

    def attend_in_windows(self, x):
        """Padding comes after the norm and is attended to: zeros that the projections give a bias, as in SAM."""
        b, g, _, d = x.shape
        pad = -g % self.window
        windows = to_patches(jnp.pad(x, ((0, 0), (0, pad), (0, pad), (0, 0))), self.window)
        y = self.attention(windows.reshape(-1, self.window, self.window, d))
        return from_patches(y.reshape(windows.shape))[:, :g, :g]


class SamEncoder(nnx.Module):
    """Normalised pixels [M, S, S, 3] -> [M, g, g, out_width], in the dtype of the pixels."""

    def __init__(self, config, *, rngs):
        whole = len(config.global_blocks)
        c = config.out_width
        self.patch_embed = PatchConv(config.patch, 3, config.width, bias=True, rngs=rngs)
        self.position_embed = nnx.Param(sincos_positions(config.grid, config.width))
        self.window_blocks = make_stack(lambda r: SamBlock(config, config.window, rngs=r), config.depth - whole, rngs)
        self.global_blocks = make_stack(lambda r: SamBlock(config, 0, rngs=r), whole, rngs)
        self.neck1 = Linear(config.width, c, rngs=rngs)
        self.neck_norm1 = LayerNorm(c, epsilon=1e-6)
        self.neck2 = nnx.Param(UNIFORM(rngs.params(), (3, 3, c, c)))
        self.neck_norm2 = LayerNorm(c, epsilon=1e-6)
        self.config = config

    def __call__(self, pixels, *, remat=False):
        """remat: recompute every block in the backward pass. Not needed where the encoder is frozen, as in the paper."""
        return self.neck(self.run_blocks(self.embed(pixels), remat))

    def embed(self, pixels):
        """-> [M, g, g, D], what the first block takes."""
        return self.patch_embed(to_patches(pixels, self.config.patch)) + self.position_embed[...].astype(pixels.dtype)

    def neck(self, x):
        """What the last block gives [M, g, g, D] -> [M, g, g, out_width]."""
        x = self.neck_norm1(self.neck1(x))
        x = jax.lax.conv_general_dilated(
            x, self.neck2[...].astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return self.neck_norm2(x)

    def run_blocks(self, x, remat):
        """Groups of equal length: some window blocks, then one global block. A scan over groups of a scan over windows."""
        groups = len(self.config.global_blocks)
        window_def, windows = nnx.split(self.window_blocks)
        global_def, wholes = nnx.split(self.global_blocks)
        windows = jax.tree.map(lambda p: p.reshape(groups, -1, *p.shape[1:]), windows)
        wholes = jax.tree.map(lambda p: p[:, None], wholes)

        def group(x, params):
            for graphdef, stack in zip((window_def, global_def), params, strict=True):
                x = run_stack(nnx.merge(graphdef, stack), x, remat=remat)
            return x, None

        return jax.lax.scan(group, x, (windows, wholes), unroll=unrolled(groups, self.config.depth))[0]
