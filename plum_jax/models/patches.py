"""Images as patches: convolutions whose stride is their kernel size, as reshape and matrix product; 2-D sin-cos positions."""

import jax.numpy as jnp
from flax import nnx

from plum_jax.models.layers import UNIFORM


def to_patches(maps, size):
    """[B, g * size, g * size, C] -> [B, g, g, size, size, C]."""
    b, h, w, c = maps.shape
    return maps.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)


def from_patches(patches):
    """[B, g, g, size, size, C] -> [B, g * size, g * size, C], the inverse of `to_patches`."""
    b, h, w, s, _, c = patches.shape
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * s, c)


class PatchConv(nnx.Module):
    """Convolution with stride = kernel = `size` on pixels that are grouped already: [..., size, size, C_in] -> [..., C_out]."""

    def __init__(self, size, c_in, c_out, *, bias, rngs):
        self.kernel = nnx.Param(UNIFORM(rngs.params(), (size, size, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out)) if bias else None

    def __call__(self, x):
        y = x.reshape(*x.shape[:-3], -1) @ self.kernel[...].astype(x.dtype).reshape(-1, self.kernel.shape[-1])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class PatchUpConv(nnx.Module):
    """Transposed convolution with stride = kernel = `size`: each pixel a patch, [..., C_in] -> [..., size, size, C_out]."""

    def __init__(self, size, c_in, c_out, *, rngs):
        kernel = UNIFORM(rngs.params(), (c_in, size * size * c_out))  # each output pixel sees one input pixel
        self.kernel = nnx.Param(kernel.reshape(c_in, size, size, c_out).transpose(1, 2, 0, 3))
        self.bias = nnx.Param(jnp.zeros(c_out))

    def __call__(self, x):
        size, _, c_in, c_out = self.kernel.shape
        kernel = self.kernel[...].astype(x.dtype).transpose(2, 0, 1, 3).reshape(c_in, -1)
        return (x @ kernel).reshape(*x.shape[:-1], size, size, c_out) + self.bias[...].astype(x.dtype)


def sincos_positions(grid, width):
    """float32[grid, grid, width]: sine and cosine of x and of y at width / 4 frequencies (MoCo v3, arXiv 2104.02057)."""
    omega = 10000.0 ** (-jnp.arange(width // 4) / (width / 4))
    angle = jnp.arange(grid)[:, None] * omega
    y, x = angle[:, None, :], angle[None, :, :]
    parts = [jnp.broadcast_to(f(a), (grid, grid, width // 4)) for a in (x, y) for f in (jnp.sin, jnp.cos)]
    return jnp.pad(jnp.concatenate(parts, -1), ((0, 0), (0, 0), (0, width % 4)))
