"""Mask feedback as M 5.1 and 5.2 describe it: lists of past masks, everything computed again for every span.

Differentiable, so that the linear form can be compared in gradients too. Rows one by one, attention as torch computes it,
with the positional encoding on keys and values, convolutions by XLA.
"""

from functools import partial

import jax
import jax.numpy as jnp


def conv(x, kernel, bias, stride):
    out = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return out + bias


def layer_norm(x, scale, bias):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-6) * scale + bias


def film(x, embeds, weights):
    """[n, h, w, c], [n, D] -> x (1 + scale) + shift, scale first in the output of the linear layer."""
    out = embeds @ weights["kernel"] + weights["bias"]
    scale, shift = out[:, : x.shape[-1]], out[:, x.shape[-1] :]
    return x * (1 + scale[:, None, None]) + shift[:, None, None]


def encode(prompt, pooler, masks, embeds):
    """Past masks [n, 4g, 4g] with their span embeddings [n, D] -> [n, g, g, D]."""
    x = masks[..., None]
    for i, stride in (("1", 2), ("2", 2)):
        x = conv(x, prompt[f"conv{i}"]["kernel"], prompt[f"conv{i}"]["bias"], stride)
        x = layer_norm(x, prompt[f"norm{i}"]["scale"], prompt[f"norm{i}"]["bias"])
        x = jax.nn.gelu(film(x, embeds, pooler[f"film{i}"]), approximate=False)
    return conv(x, prompt["conv3"]["kernel"][None, None], prompt["conv3"]["bias"], 1)


@partial(jax.jit, static_argnames="heads")
def pool(prompt, pooler, pe, heads, masks, embeds):
    """Dense prompt [g, g, D] from the past masks of one row, two lists."""
    g, _, width = pe.shape
    if not masks:
        return jnp.broadcast_to(prompt["no_mask_embed"], (g, g, width))
    keys = (encode(prompt, pooler, jnp.stack(masks), jnp.stack(embeds)) + pe).reshape(-1, g * g, width)
    linear = lambda name, x: x @ pooler[name]["kernel"] + pooler[name]["bias"]  # noqa: E731
    split = lambda x: x.reshape(*x.shape[:-1], heads, width // heads)  # noqa: E731
    q, k, v = split(linear("q_proj", pooler["queries"])), split(linear("k_proj", keys)), split(linear("v_proj", keys))
    weights = jax.nn.softmax(jnp.einsum("pnh,jpnh->pnj", q, k) / (width // heads) ** 0.5, axis=-1)
    return linear("out_proj", jnp.einsum("pnj,jpnh->pnh", weights, v).reshape(g * g, width)).reshape(g, g, width)


def decode_row(prompt, pooler, pe, heads, decode, image, embeds, valid):
    """One row: image [g, g, D], embeds [N, D], valid: a tuple of bools. decode(image, sparse, dense) -> (mask, iou)."""
    g = image.shape[0]
    masks, past, out = [], [], []
    for embed, keep in zip(embeds, valid, strict=True):
        if not keep:
            out.append((jnp.zeros((4 * g, 4 * g)), jnp.zeros(())))
            continue
        out.append(decode(image, embed, pool(prompt, pooler, pe, heads, masks, past)))
        masks, past = [*masks, out[-1][0]], [*past, embed]
    return jnp.stack([m for m, _ in out]), jnp.stack([i for _, i in out])
