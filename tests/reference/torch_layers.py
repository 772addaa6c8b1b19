"""Building blocks of the PyTorch transcription: functions of a dictionary of tensors and the name of a layer in it."""

import torch
import torch.nn.functional as F


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(w, name, x, epsilon):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)


def layer_norm_2d(w, name, x):
    """Over the channels of a map [B, C, H, W], biased variance, epsilon 1e-6 (M 4.1)."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-6)
    return w[f"{name}.weight"][:, None, None] * x + w[f"{name}.bias"][:, None, None]


def heads_of(x, heads):
    """[B, T, N * H] -> [B, N, T, H]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def attend(q, k, v, heads, allowed=None):
    """q [B, T, D], k, v [B, S, D], allowed bool broadcastable to [B, N, T, S] -> [B, T, D]; scale 1 / sqrt(D / N)."""
    q, k, v = (heads_of(x, heads) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def packed_attention(w, name, query, source, heads, allowed=None):
    """torch.nn.MultiheadAttention with its packed projections: query [B, T, D], source [B, S, D] -> [B, T, D]."""
    weights, biases = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (F.linear(x, weights[i], biases[i]) for i, x in enumerate((query, source, source)))
    return linear(w, f"{name}.out_proj", attend(q, k, v, heads, allowed))


def depth_of(w, prefix):
    """How many numbered layers have names that start with `prefix`."""
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in w if name.startswith(prefix))
