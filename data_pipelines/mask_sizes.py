"""Masks of another size than their image: an error, or resized as config.data.resize_mismatched_masks says (D 1.3, D16)."""

import numpy as np

RULES = ("error", "nearest", "linear_area")
HALF = 0.5 - 1e-9  # an average of a half, whatever the order of its sum, counts as inside


def fit_mask(mask, hw, rule="error"):
    """uint8[h, w] of 0 and 1 -> uint8[H, W].

    Args:
      rule: "error": ValueError, as stretching a mask would hide a wrong annotation. "nearest": nearest neighbour with
        half-pixel centres. "linear_area": as the reference, bilinear where a side of the mask is smaller than that of the image
        and the average of the area otherwise, rounded.
    """
    hw = tuple(hw)
    if mask.shape == hw:
        return mask
    if rule == "error":
        raise ValueError(f"mask is {mask.shape[0]} x {mask.shape[1]}, image is {hw[0]} x {hw[1]}")
    if rule == "nearest":
        return shrink_mask(mask, hw)
    weights = _linear if any(old < new for old, new in zip(mask.shape, hw, strict=True)) else _area
    rows, columns = (weights(new, old) for new, old in zip(hw, mask.shape, strict=True))
    return (rows @ mask.astype(np.float64) @ columns.T >= HALF).astype(np.uint8)


def shrink_mask(mask, hw):
    """uint8[H, W] -> uint8[h, w] by nearest neighbour, half-pixel centres."""
    if mask.shape == tuple(hw):
        return mask
    rows, columns = (((np.arange(new) + 0.5) * (old / new)).astype(np.intp) for new, old in zip(hw, mask.shape, strict=True))
    return mask[rows[:, None], columns]


def _linear(new, old):
    """float64[new, old]: bilinear weights of one side, half-pixel centres, no antialiasing."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(old)))


def _area(new, old):
    """float64[new, old]: the share of every old pixel in each of fewer new ones."""
    edges = np.arange(new + 1) * (old / new)
    overlap = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    return np.maximum(overlap, 0.0) * (new / old)
