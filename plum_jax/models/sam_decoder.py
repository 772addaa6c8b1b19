"""SAM's prompt encoder and two-way mask decoder; the prompt of a mask is one span embedding (M 4.2, 4.3)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from plum_jax.models.attention import attention
from plum_jax.models.layers import LayerNorm, Linear, gelu, make_stack, merge_heads, split_heads
from plum_jax.models.patches import PatchConv, PatchUpConv, to_patches
from plum_jax.precision import rounded

TWO_WAY_EPSILON = 1e-5  # the norms of the two-way transformer; the port in transformers has 1e-6 (M 9.3)
MAP_EPSILON = 1e-6  # the norms of maps (LayerNorm2d)
MASK_TOKENS = 4


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes of the prompt encoder and of the mask decoder; `grid` is the side of the image embedding."""

    width: int
    grid: int
    depth: int
    heads: int
    mlp: int
    attention_downsample: int
    mask_channels: int
    pe_dtype: str  # float32, or bfloat16 as the published weights were trained (M D29)


class PromptEncoder(nnx.Module):
    """Positional encoding of the grid, and the layers that turn a low-resolution mask into channels of a dense prompt.

    Point embeddings are parameters of SAM's checkpoints; PLUM prompts with spans alone and does not read them.
    """

    def __init__(self, config, *, rngs):
        d, c = config.width, config.mask_channels
        self.gaussian_matrix = nnx.Param(jax.random.normal(rngs.params(), (2, d // 2)))
        self.no_mask_embed = nnx.Param(jax.random.normal(rngs.params(), (d,)))
        self.point_embeddings = nnx.Param(jax.random.normal(rngs.params(), (4, d)))
        self.not_a_point_embed = nnx.Param(jax.random.normal(rngs.params(), (d,)))
        self.conv1 = PatchConv(2, 1, c // 4, bias=True, rngs=rngs)
        self.norm1 = LayerNorm(c // 4, epsilon=MAP_EPSILON)
        self.conv2 = PatchConv(2, c // 4, c, bias=True, rngs=rngs)
        self.norm2 = LayerNorm(c, epsilon=MAP_EPSILON)
        self.conv3 = Linear(c, d, bias=True, rngs=rngs)  # a 1x1 convolution
        self.config = config

    def dense_pe(self):
        """float32[g, g, D]: sine and cosine of random Fourier features of the pixel centres; y grows along the first axis.

        With pe_dtype bfloat16 every operation is rounded, in the reference's order: errors up to 0.13 (M D29). The matrix
        is a buffer in SAM, hence no gradient.
        """
        low = functools.partial(rounded, dtype=self.config.pe_dtype)
        g = self.config.grid
        centre = low(low(jnp.arange(g) + 0.5) / g)
        centre = low(low(2 * centre) - 1)
        matrix = low(jax.lax.stop_gradient(self.gaussian_matrix[...]).astype(jnp.float32))
        y, x = jnp.meshgrid(centre, centre, indexing="ij")
        angle = low(2 * jnp.pi * low(jnp.matmul(jnp.stack([x, y], -1), matrix, precision="highest")))
        return low(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1))

    def mask_maps(self, masks, film=None):
        """Mask logits [R, 4g, 4g] -> [R, g, g, c], what `conv3` turns into a dense prompt.

        Args:
          masks: low-resolution logits.
          film: None, or for both convolutions (1 + scale, shift), broadcastable to [R, g, g, 2, 2, c/4] and [R, g, g, c]:
            applied after the norm and before the GELU (M 5.2).
        """
        (scale1, shift1), (scale2, shift2) = film or ((1, 0), (1, 0))
        x = to_patches(to_patches(masks[..., None], 4).reshape(-1, 4, 4, 1), 2)  # both convolutions inside a 4x4 patch
        x = x.reshape(masks.shape[0], self.config.grid, self.config.grid, *x.shape[1:])
        x = gelu(self.norm1(self.conv1(x)) * scale1 + shift1)
        return gelu(self.norm2(self.conv2(x)) * scale2 + shift2)


class CrossAttention(nnx.Module):
    """Attention with a narrower inside: q [R, T, D], k and v [R, S, D] -> [R, T, D]."""

    def __init__(self, width, inner, heads, *, rngs):
        self.q_proj, self.k_proj, self.v_proj = (Linear(width, inner, bias=True, rngs=rngs) for _ in range(3))
        self.out_proj = Linear(inner, width, bias=True, rngs=rngs)
        self.heads = heads

    def __call__(self, q, k, v):
        q, k, v = (split_heads(p(x), self.heads) for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        return self.out_proj(merge_heads(attention(q, k, v)))


class TwoWayLayer(nnx.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens (M 4.3)."""

    def __init__(self, config, *, rngs):
        d, inner = config.width, config.width // config.attention_downsample
        self.self_attention = CrossAttention(d, d, config.heads, rngs=rngs)
        self.token_to_image = CrossAttention(d, inner, config.heads, rngs=rngs)
        self.image_to_token = CrossAttention(d, inner, config.heads, rngs=rngs)
        self.linear1 = Linear(d, config.mlp, bias=True, rngs=rngs)
        self.linear2 = Linear(config.mlp, d, bias=True, rngs=rngs)
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(d, epsilon=TWO_WAY_EPSILON) for _ in range(4))

    def __call__(self, tokens, image, token_pe, image_pe, *, first):
        """tokens [R, T, D], image [R, S, D] -> the same. The first layer has neither residual nor PE in self-attention."""
        if first:
            tokens = self.self_attention(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attention(q, q, tokens)
        tokens = self.norm1(tokens)
        keys = image + image_pe
        tokens = self.norm2(tokens + self.token_to_image(tokens + token_pe, keys, image))
        tokens = self.norm3(tokens + self.linear2(jax.nn.relu(self.linear1(tokens))))
        image = self.norm4(image + self.image_to_token(keys, tokens + token_pe, tokens))
        return tokens, image


class Mlp(nnx.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width, d_out, *, rngs):
        self.linear1, self.linear2 = (Linear(width, width, bias=True, rngs=rngs) for _ in range(2))
        self.linear3 = Linear(width, d_out, bias=True, rngs=rngs)

    def __call__(self, x):
        return self.linear3(jax.nn.relu(self.linear2(jax.nn.relu(self.linear1(x)))))


class MaskDecoder(nnx.Module):
    """One mask per row from an image embedding, a span embedding and a dense prompt.

    All four mask tokens of SAM take part in the attention, but only the mask of token 0 is computed: the others are
    discarded by the reference (M 4.3, D49). Their hypernetworks are parameters so that checkpoints convert both ways.
    """

    def __init__(self, config, *, rngs):
        d = config.width
        self.iou_token = nnx.Param(jax.random.normal(rngs.params(), (d,)))
        self.mask_tokens = nnx.Param(jax.random.normal(rngs.params(), (MASK_TOKENS, d)))
        self.layers = make_stack(lambda r: TwoWayLayer(config, rngs=r), config.depth, rngs)
        self.final_attention = CrossAttention(d, d // config.attention_downsample, config.heads, rngs=rngs)
        self.final_norm = LayerNorm(d, epsilon=TWO_WAY_EPSILON)
        self.upscale1 = PatchUpConv(2, d, d // 4, rngs=rngs)
        self.upscale_norm = LayerNorm(d // 4, epsilon=MAP_EPSILON)
        self.upscale2 = PatchUpConv(2, d // 4, d // 8, rngs=rngs)
        self.hypernetworks = make_stack(lambda r: Mlp(d, d // 8, rngs=r), MASK_TOKENS, rngs)
        self.iou_head = Mlp(d, MASK_TOKENS, rngs=rngs)
        self.config = config

    def __call__(self, image_embeddings, sparse, dense, dense_pe):
        """
        Args:
          image_embeddings: [R, g, g, D].
          sparse: [R, 1, D], one prompt token per row.
          dense: [R, g, g, D] or what broadcasts to it.
          dense_pe: [g, g, D].

        Returns:
          (low_res, iou): mask logits float32[R, 4g, 4g] and float32[R]. The reference never supervises iou (M D37).
        """
        dtype = image_embeddings.dtype
        learned = jnp.concatenate([self.iou_token[...][None], self.mask_tokens[...]]).astype(dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(learned, (sparse.shape[0], *learned.shape)), sparse.astype(dtype)], 1)
        image = image_embeddings + dense.astype(dtype)
        shape = image.shape
        image_pe = dense_pe.reshape(-1, shape[-1]).astype(dtype)
        tokens, image = self.two_way(tokens, image.reshape(shape[0], -1, shape[-1]), image_pe)
        x = gelu(self.upscale_norm(self.upscale1(image.reshape(shape))))
        x = gelu(self.upscale2(x))  # [R, g, g, 2, 2, 2, 2, D/8]: pixels stay grouped, only the final mask is rearranged
        graphdef, params = nnx.split(self.hypernetworks)
        hyper = nnx.merge(graphdef, jax.tree.map(lambda p: p[0], params))(tokens[:, 1])
        low_res = jnp.einsum("ryxijklc,rc->ryxijkl", x, hyper, preferred_element_type=jnp.float32)
        low_res = low_res.transpose(0, 1, 3, 5, 2, 4, 6).reshape(shape[0], 4 * shape[1], 4 * shape[2])
        return low_res, self.iou_head(tokens[:, 0])[:, 0].astype(jnp.float32)

    def two_way(self, tokens, image, image_pe):
        """tokens [R, T, D], image [R, S, D], image_pe [S, D] -> (tokens, image) after `depth` layers and a last attention."""
        token_pe = tokens
        graphdef, params = nnx.split(self.layers)
        for i in range(self.config.depth):
            layer = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], params))
            tokens, image = layer(tokens, image, token_pe, image_pe, first=i == 0)
        tokens = tokens + self.final_attention(tokens + token_pe, image + image_pe, image)
        return self.final_norm(tokens), image
