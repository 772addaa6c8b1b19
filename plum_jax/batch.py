"""`Batch`: every array that crosses from the data pipeline to the model. NumPy only."""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """B images with C conversations of T tokens each, right-padded; N span slots per conversation, K masks per image.

    A named tuple, hence a pytree without importing jax. Only M = B * n / m images carry masks, where `grounded = (n, m)`
    in the config: of every m consecutive images the first n (`grounded_rows`). The others train the language model alone
    and skip SAM. With the default (1, 1) M = B.
    """

    sam_pixels: np.ndarray  # uint8[M, S, S, 3] longest side resized to S, padded right and bottom with 0
    clip_pixels: np.ndarray  # uint8[B, I, I, 3] letterboxed or centre-cropped view for CLIP
    resized_hw: np.ndarray  # int32[M, 2] size inside sam_pixels before padding
    original_hw: np.ndarray  # int32[M, 2] size inside masks before padding
    tokens: np.ndarray  # int32[B, C, T]; the image placeholder is one token here (its id is not read)
    token_valid: np.ndarray  # bool[B, C, T]
    loss_weight: np.ndarray  # float32[B, C, T] 1 on answer tokens and their </s>
    image_position: np.ndarray  # int32[B, C] index of the placeholder in tokens, -1 for text-only rows
    bio: np.ndarray  # int8[B, C, T] O 0, B 1, I 2
    span_of_token: np.ndarray  # int8[B, C, T] 0 none, s + 1 slot s
    span_valid: np.ndarray  # bool[B, C, N] slots that own a target mask; all False in images without masks
    span_mask_index: np.ndarray  # int8[B, C, N] index into masks of the image, 0 where not valid
    masks: np.ndarray  # uint8[M, K, Hc, Wc] 0 or 1, at original size in the top left corner of a canvas
    mask_valid: np.ndarray  # bool[M, K]
    sample_id: np.ndarray  # int64[B] index into the data source
    patch_part: np.ndarray | None = None  # int16[B, P] part id (1..) that covers most of a CLIP patch, 0 background, -1 ignore


def grounded_rows(array, grounded):
    """[B, ...] -> [B * n / m, ...]: the first n of every m rows. Works on NumPy and JAX arrays; a slice, no gather."""
    n, m = grounded
    if n == m:
        return array
    rest = array.shape[1:]
    return array.reshape(-1, m, *rest)[:, :n].reshape(-1, *rest)
