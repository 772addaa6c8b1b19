"""IoU by the size of the part: small parts are where models fail, and a mean over all parts hides it."""

import numpy as np

# Of the image. 0.0033 and 0.03 are the borders between small, medium and large of COCO at 640 x 480.
EDGES = (0.001, 0.0033, 0.01, 0.03, 0.1)
BINS = ("below_0.1%", "0.1%_to_0.33%", "0.33%_to_1%", "1%_to_3%", "3%_to_10%", "10%_and_more")


def bin_of(share):
    """Share of the image that a part covers -> its bin."""
    return BINS[int(np.searchsorted(EDGES, share, side="right"))]


def by_area(shares, ious):
    """Mean IoU of the pairs in each bin.

    Args:
      shares: relative areas of the target masks. ious: of their pairs by name, 0 for a missing mask; NaN pairs are left out.

    Returns:
      {bin: {"gmIoU-paired_strict": mean or None, "n_pairs": int}}.
    """
    shares, ious = np.asarray(shares, np.float64), np.asarray(ious, np.float64)
    place = np.searchsorted(EDGES, shares, side="right")
    result = {}
    for k, name in enumerate(BINS):
        chosen = ious[(place == k) & ~np.isnan(ious)]
        result[name] = {"gmIoU-paired_strict": float(chosen.mean()) if chosen.size else None, "n_pairs": int(chosen.size)}
    return result
