"""Mask logits at low resolution -> original image size, as two matrix products (M 4.4)."""

import jax.numpy as jnp
from jax import lax


def resize_matrix(out_size, in_size, max_out, max_in):
    """float32[max_out, max_in]: bilinear, half-pixel centres, no antialias (torch interpolate). Sizes may be traced.

    The centre of output i, (i + 1/2) in / out - 1/2, is split into whole and fraction in integers: near pixel 1000 a float32
    centre is off by 6e-5, which is visible in steep logits.
    """
    numerator = jnp.clip((2 * jnp.arange(max_out) + 1) * in_size - out_size, 0, 2 * out_size * (in_size - 1))
    whole = numerator // (2 * out_size)
    fraction = (numerator - whole * 2 * out_size) / (2 * out_size)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs((whole[:, None] - jnp.arange(max_in)) + fraction[:, None]))
    return jnp.where(jnp.arange(max_out)[:, None] < out_size, weight, 0.0)  # rows past out_size are zero


def _axis_matrix(original, resized, low, image_size, canvas):
    """float32[canvas, low]: low -> image_size, crop to `resized`, -> original; both steps in one matrix (design 4)."""
    up = resize_matrix(image_size, low, image_size, low)  # the crop is implicit: columns past `resized` are never read
    return jnp.matmul(resize_matrix(original, resized, canvas, image_size), up, precision=lax.Precision.HIGHEST)


def to_original(low_res, resized_hw, original_hw, image_size, canvas):
    """The reference's two interpolations with a crop between them, for one image of any size.

    Args:
      low_res: float[..., h, w] mask logits that cover the padded image of `image_size` pixels.
      resized_hw: int32[2] size of the image content inside the padded square. May be traced.
      original_hw: int32[2] size of the original image, at most `canvas`. May be traced.
      image_size: side of the padded square in pixels (1024 in the full model).
      canvas: (Hc, Wc) static size of the result.

    Returns:
      float32[..., Hc, Wc] logits; rows and columns past original_hw are zero.
    """
    rows = _axis_matrix(original_hw[0], resized_hw[0], low_res.shape[-2], image_size, canvas[0])
    columns = _axis_matrix(original_hw[1], resized_hw[1], low_res.shape[-1], image_size, canvas[1])
    half = jnp.matmul(rows, low_res.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return jnp.matmul(half, columns.T, precision=lax.Precision.HIGHEST)
