"""The losses of M 6 transcribed to float64 NumPy, one image and one span at a time, with nothing padded."""

import numpy as np

EPSILON = 1e-6


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def nll(logits, labels):
    """[..., V], int[...] -> [...]."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return log_sum - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]


def language(logits, tokens, supervised):
    """Mean over the supervised tokens of row-by-row shifted logits: logits[r, t - 1] predicts tokens[r, t]."""
    losses = [nll(logits[r, t - 1], tokens[r, t]) for r, t in zip(*np.nonzero(supervised), strict=True)]
    return np.mean(losses)


def tag(logits, labels, class_weights, counted=None):
    """Weighted mean over the rows (of any length) that have a label; `counted` bool[R, T] leaves positions out."""
    total = weight = 0.0
    for r in range(len(labels)):
        if not (labels[r] > 0).any():
            continue
        for t in range(len(labels[r])):
            if counted is None or counted[r][t]:
                w = class_weights[labels[r][t]]
                total += w * nll(logits[r][t], labels[r][t])
                weight += w
    return total / weight if weight else 0.0


def dice(z, t, scale):
    p = sigmoid(z)
    return 1 - (2 * (p / scale * t).sum() + EPSILON) / ((p / scale).sum() + (t / scale).sum() + EPSILON)


def tversky(z, t, alpha, beta, gamma):
    p = sigmoid(z)
    tp, fp, fn = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    return (1 - (tp + EPSILON) / (tp + alpha * fn + beta * fp + EPSILON)) ** gamma


def bce(z, t):
    z = np.asarray(z, np.float64)
    return (np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))).mean()


def reference(hidden, base):
    """Of one span: half the mean squared distance over its tokens and channels."""
    return 0.5 * np.square(np.asarray(hidden, np.float64) - base).mean()
