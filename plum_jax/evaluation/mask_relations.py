"""How the masks of one answer lie to each other and to the object: numbers to read, not to win (masks may rightly nest)."""

import numpy as np

from plum_jax.evaluation import run_lengths


def inside_object(rles, region):
    """Share of each mask's pixels that lie in the object's region: float64[n], NaN for an empty mask.

    Question files have no mask of the object, so the region is the union of all its annotated parts; a mask of a part that
    is not annotated counts as outside.
    """
    return run_lengths.shares(rles, [region])[:, 0] if len(rles) else np.zeros(0)


def sibling_overlap(rles):
    """Overlap of every two masks of one answer: intersection over the smaller area, float64[n (n - 1) / 2].

    1 when one mask covers the other. Pairs with an empty mask are left out.
    """
    kept = [rle for rle, area in zip(rles, run_lengths.areas(rles), strict=True) if area]
    if len(kept) < 2:
        return np.zeros(0)
    shares = run_lengths.shares(kept, kept)
    return np.maximum(shares, shares.T)[np.triu_indices(len(kept), 1)]
