"""The metrics that get an interval, each as a ratio of sums over questions: what the bootstrap over images draws from.

A metric is {path in the group: (above, below)}, both float64[questions]; its value is sum(above) / sum(below).
"""

import numpy as np

from plum_jax.evaluation import bootstrap


def floats(values):
    """Numbers and Nones -> float64 with NaN."""
    return np.array([np.nan if v is None else v for v in values], np.float64)


def mask_ratios(pairs, macro="mask_macro", micro="mask_micro"):
    """{metric: per question the IoUs of its pairs} -> ratios of the macro mean (of question means) and the micro mean."""
    found = {}
    for name, values in pairs.items():
        count = np.array([np.count_nonzero(~np.isnan(v)) for v in values], np.float64)
        total = np.array([np.nansum(v) for v in values], np.float64)
        has = count > 0
        found[macro, name] = np.divide(total, count, out=np.zeros(len(count)), where=has), has.astype(np.float64)
        found[micro, name] = total, count
    return found


def accuracy_ratio(pairs):
    """[(predicted or None, correct or None)] -> ratio of the accuracy over the questions that have both."""
    below = np.array([p is not None and c is not None for p, c in pairs], np.float64)
    return np.array([p is not None and p == c for p, c in pairs], np.float64) * below, below


def text_ratios(group, counts):
    """[(matches, predicted, references) or None] -> ratios of precision, recall and F1."""
    table = np.array([c or (0, 0, 0) for c in counts], np.float64).reshape(-1, 3)
    matched, said, wanted = table.T
    return {
        (group, "precision"): (matched, said),
        (group, "recall"): (matched, wanted),
        (group, "f1"): (2 * matched, said + wanted),
    }


def intervals(records, ratios):
    """Records and their ratios -> {group: {metric: [low, high] or None}}; a path of one name stands at the top."""
    found = bootstrap.intervals([r["image_path"] for r in records], ratios)
    result = {}
    for path, value in found.items():
        if len(path) == 1:
            result[path[0]] = value
        else:
            result.setdefault(path[0], {})[path[1]] = value
    return result
