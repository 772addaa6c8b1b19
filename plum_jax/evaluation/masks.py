"""Mask metrics: the ways to pair predicted with target masks, macro and micro means (D 5.2). IoU is in `run_lengths`."""

import numpy as np
from scipy.optimize import linear_sum_assignment

STRATEGIES = ("paired", "greedy", "hungarian", "union")
EMPTY_UNION = {"one": 1.0, "zero": 0.0, "skip": np.nan}  # what two empty masks score


def pair_indices(matrix, strategy):
    """Which pairs a strategy forms, from an IoU matrix float[n, m].

    paired: (i, i). greedy: the best remaining pair again and again, each mask once. hungarian: the assignment with the
    largest sum (NaN counts as -1). All three form min(n, m) pairs: extra and missing masks cost nothing (D32 of D 7.3),
    which is why `paired_strict` is our default and these are reported for comparison.

    Returns:
      (rows int[min(n, m)], columns int[min(n, m)]).
    """
    matrix = np.asarray(matrix, np.float64)
    n = min(matrix.shape)
    if strategy == "paired":
        return np.arange(n), np.arange(n)
    comparable = np.where(np.isnan(matrix), -1.0, matrix)
    if strategy == "hungarian":
        return linear_sum_assignment(comparable, maximize=True)
    if strategy == "greedy":
        pairs = np.zeros((2, n), int)
        for k in range(n):
            pairs[:, k] = i, j = np.unravel_index(np.argmax(comparable), comparable.shape)
            comparable[i], comparable[:, j] = -np.inf, -np.inf
        return tuple(pairs)
    raise ValueError(f"{strategy!r} is not a pairing strategy; choose from {STRATEGIES}")


def macro(pairs):
    """Mean over images of the mean over an image's pairs. NaN pairs and images without a pair are left out; None if all are."""
    images = [kept.mean() for kept in (p[~np.isnan(p)] for p in map(np.asarray, pairs)) if kept.size]
    return float(np.mean(images)) if images else None


def micro(pairs):
    """Mean over all pairs of all images (NaN left out); None without any."""
    flat = np.concatenate([np.asarray(p, np.float64).ravel() for p in pairs]) if len(pairs) else np.zeros(0)
    flat = flat[~np.isnan(flat)]
    return float(flat.mean()) if flat.size else None
