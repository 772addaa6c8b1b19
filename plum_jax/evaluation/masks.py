"""Mask metrics: IoU, the ways to pair predicted with target masks, macro and micro means (D 5.2). NumPy only, no model."""

import numpy as np
from scipy.optimize import linear_sum_assignment

STRATEGIES = ("paired", "greedy", "hungarian", "union")
EMPTY_UNION = {"one": 1.0, "zero": 0.0, "skip": np.nan}  # what two empty masks score
IGNORE = 255  # value of target pixels that count neither for nor against


def iou_matrix(predicted, target, *, empty_union="one", ignore255_as_foreground=False):
    """IoU of every predicted mask with every target mask.

    Args:
      predicted: bool or 0/1 [n, H, W], or a sequence of [H, W]; the same for `target` [m, H, W], which may hold 255.
      empty_union: the score of two empty masks, a key of `EMPTY_UNION`; "skip" gives NaN, which the means leave out.
      ignore255_as_foreground: count 255 as foreground like the reference's evaluator (D33 of D 7.3) instead of leaving
        those pixels out of intersection and union.

    Returns:
      float64[n, m].

    Raises:
      ValueError: masks of different sizes.
    """
    predicted, target = [np.asarray(p) for p in predicted], [np.asarray(t) for t in target]
    sizes = {mask.shape for mask in (*predicted, *target)}
    if len(sizes) > 1:
        raise ValueError(f"masks have different sizes {sorted(sizes)}; resize them to the image first")
    p_bits = [_pack(p != 0) for p in predicted]
    result = np.empty((len(predicted), len(target)))
    for j, mask in enumerate(target):
        has_ignore = not ignore255_as_foreground and mask.dtype != bool and bool((mask == IGNORE).any())
        t_bits = _pack((mask != 0) & (mask != IGNORE) if has_ignore else mask != 0)
        seen = _pack(mask != IGNORE) if has_ignore else None
        for i, bits in enumerate(p_bits):
            bits = bits & seen if has_ignore else bits
            union = _count(bits | t_bits)
            result[i, j] = _count(bits & t_bits) / union if union else EMPTY_UNION[empty_union]
    return result


def _pack(mask):
    """bool[H, W] -> uint64 words, so that counting pixels is a population count over 1/64 of the entries."""
    bits = np.packbits(mask)
    return np.pad(bits, (0, -len(bits) % 8)).view(np.uint64)


def _count(words):
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def iou(predicted, target, **options):
    """IoU of two masks [H, W]; options of `iou_matrix`."""
    return float(iou_matrix([predicted], [target], **options)[0, 0])


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


def pair_ious(matrix, strategy):
    """IoU of the pairs of `pair_indices`: float64[min(n, m)]."""
    matrix = np.asarray(matrix, np.float64)
    return matrix[pair_indices(matrix, strategy)]


def union_iou(predicted, target, **options):
    """IoU of the union of the predicted masks with the union of the target masks; empty when either side has none."""
    if not len(predicted) or not len(target):
        return np.zeros(0)
    merged = [np.any(np.asarray(side) != 0, axis=0) for side in (predicted, target)]
    return iou_matrix(merged[:1], merged[1:], **options)[0]


def all_strategies(predicted, target, **options):
    """{strategy: IoUs of its pairs} of one image, the four of D 5.2."""
    matrix = iou_matrix(predicted, target, **options).reshape(len(predicted), len(target))
    pairs = {name: pair_ious(matrix, name) for name in STRATEGIES if name != "union"}
    return {**pairs, "union": union_iou(predicted, target, **options)}


def paired_strict(predicted, target, **options):
    """Pairs by part name; a target without a prediction scores 0.

    Args:
      predicted, target: dictionaries from part name to mask [H, W].

    Returns:
      ({part name: IoU} over the targets, number of predictions whose name is no target).
    """
    pairs = {name: iou(predicted[name], mask, **options) if name in predicted else 0.0 for name, mask in target.items()}
    return pairs, len(set(predicted) - set(target))


def macro(pairs):
    """Mean over images of the mean over an image's pairs. NaN pairs and images without a pair are left out; None if all are."""
    images = [kept.mean() for kept in (p[~np.isnan(p)] for p in map(np.asarray, pairs)) if kept.size]
    return float(np.mean(images)) if images else None


def micro(pairs):
    """Mean over all pairs of all images (NaN left out); None without any."""
    flat = np.concatenate([np.asarray(p, np.float64).ravel() for p in pairs]) if len(pairs) else np.zeros(0)
    flat = flat[~np.isnan(flat)]
    return float(flat.mean()) if flat.size else None
