"""Bootstrap intervals over images (D 5.10) for every metric that is a ratio of sums: all means, shares and accuracies are.

The questions about an image are drawn together, as they are not independent. All metrics, and all models, are evaluated on
the same draws of images, so that differences of two of them are paired.
"""

import numpy as np

RESAMPLES, INTERVAL, SEED = 1000, 0.95, 0
CHUNK = 1 << 22  # entries of the matrix of counts that are held at a time


def sums_per_image(images, values):
    """Adds up what the questions of an image contribute.

    Args:
      images: n names. values: float64[n, ...].

    Returns:
      float64[images, ...], sorted by name.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(images):
        raise ValueError(f"{len(values)} values for {len(images)} images; give one row of values a question")
    names, place = np.unique(np.asarray(images, dtype=object).astype(str), return_inverse=True)
    total = np.zeros((len(names), *values.shape[1:]))
    np.add.at(total, place, values)
    return total


def resampled(sums, resamples=RESAMPLES, seed=SEED):
    """Sums over `resamples` draws of as many images, with replacement.

    Args:
      sums: float64[images, ...].

    Returns:
      float64[resamples, ...].
    """
    sums = np.asarray(sums, np.float64)
    count = len(sums)
    flat, rng, parts = sums.reshape(count, -1), np.random.default_rng(seed), []
    step = max(1, CHUNK // max(count, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(times.astype(np.float64) @ flat)
    return np.concatenate(parts).reshape(resamples, *sums.shape[1:])


def interval(values):
    """Values of a metric on the draws, float64[resamples] -> [low, high] of the middle 95 %; None where it is undefined.

    Draws on which the metric is undefined (NaN) are left out.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return [float(x) for x in np.quantile(values, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])]


def ratio(above, below):
    """above / below elementwise; NaN where nothing is below."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)


def intervals(images, metrics, resamples=RESAMPLES, seed=SEED):
    """Intervals of ratios of sums.

    Args:
      images: n names, of the image of each question.
      metrics: {name: (above float[n], below float[n])}; the metric is sum(above) / sum(below). A question that does not
        count for it has zeros in both.

    Returns:
      {name: [low, high] or None}.
    """
    if not len(images) or not metrics:
        return dict.fromkeys(metrics)
    table = np.stack([np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)], -1) for a, b in metrics.values()], 1)
    draws = resampled(sums_per_image(images, table), resamples, seed)
    values = ratio(draws[..., 0], draws[..., 1])
    return {name: interval(values[:, k]) for k, name in enumerate(metrics)}
