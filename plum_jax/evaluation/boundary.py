"""Boundary IoU: the IoU of the rims of two masks, which a large mask cannot win by its interior.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021 (arXiv 2103.16562). The rim of a
mask holds its pixels within `distance` of its outline; the border of the image counts as outline, as in their code.
"""

import functools

import numpy as np

from plum_jax.evaluation import run_lengths

DILATION_RATIO = 0.02  # of the image's diagonal: their choice for COCO-sized images


def distance(hw, ratio=DILATION_RATIO):
    """Width of the rim in pixels, at least 1."""
    return max(1, int(round(ratio * float(np.hypot(*hw)))))


def rim(mask, width):
    """bool[H, W] -> bool[H, W]: the pixels that `width` erosions by a 3 x 3 square would remove."""
    return mask & ~_erode(_erode(mask, width).T, width).T


def _erode(mask, width):
    """Minimum over 2 width + 1 rows, zeros beyond the edges, in log2(width) steps."""
    rows, window = mask.shape[0], 2 * width + 1
    if rows < window:
        return np.zeros_like(mask)
    have, reach = mask, 1
    while reach < window:
        step = min(reach, window - reach)
        have = have[:-step] & have[step:]
        reach += step
    result = np.zeros_like(mask)
    result[width : rows - width] = have
    return result


@functools.lru_cache(maxsize=512)
def _rim_of(counts, hw, width):
    rle = {"size": list(hw), "counts": counts}
    left, top, w, h = run_lengths.bounds(rle)
    columns = run_lengths.columns(rle, left, left + w)
    rows = slice(top, top + h)
    found = np.zeros_like(columns)
    found[:, rows] = rim(columns[:, rows], width)
    return run_lengths.from_columns(found, left, hw)


def rim_of(rle, ratio=DILATION_RATIO):
    """Run lengths of a mask -> run lengths of its rim. The last few hundred are kept: protocols share masks."""
    hw = tuple(rle["size"])
    return _rim_of(rle["counts"], hw, distance(hw, ratio))
