"""Mask logits at low resolution -> original image size on the host, for one mask and any size (M 4.4)."""

import functools

import numpy as np
import scipy.sparse


def original_logits(low_res, resized_hw, original_hw, image_size):
    """NumPy twin of `resize.to_original` for one mask and any size: nothing is compiled per size, no canvas bounds it.

    The two resize matrices are sparse (bilinear: a few entries in a row), which makes this cheap for large photographs too.

    Args:
      low_res: float32[h, w] mask logits of the padded square. resized_hw, original_hw: (h, w) of the image in it and of the
        original. image_size: side of the square in pixels.

    Returns:
      float32[H, W].
    """
    rows = _axis_matrix(int(original_hw[0]), int(resized_hw[0]), low_res.shape[0], image_size)
    columns = _axis_matrix(int(original_hw[1]), int(resized_hw[1]), low_res.shape[1], image_size)
    return (columns @ (rows @ low_res).T).T


@functools.lru_cache(maxsize=128)
def _axis_matrix(original, resized, low, image_size):
    """Sparse float32[original, low]: low -> image_size, crop to `resized`, -> original (M 4.4)."""
    return (_resize_matrix(original, resized) @ _resize_matrix(image_size, low)[:resized]).astype(np.float32)


def _resize_matrix(out_size, in_size):
    """Sparse float64[out_size, in_size]: bilinear, half-pixel centres, no antialias."""
    centre = np.clip((np.arange(out_size) + 0.5) * in_size / out_size - 0.5, 0, in_size - 1)
    low = np.floor(centre).astype(int)
    entries = np.stack([1 - (centre - low), centre - low]).ravel()
    columns = np.stack([low, np.minimum(low + 1, in_size - 1)]).ravel()
    return scipy.sparse.csr_array((entries, (np.tile(np.arange(out_size), 2), columns)), shape=(out_size, in_size))
