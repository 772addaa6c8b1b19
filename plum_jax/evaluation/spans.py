"""Tags -> spans by the rules of inference, and how well they agree with the constructed ones (M 3.3, D 5.5)."""

import numpy as np

from plum_jax.evaluation.text import precision_recall_f1

OUTSIDE, BEGIN, INSIDE = 0, 1, 2


def decode_spans(labels, allowed=None):
    """BIO labels int[T] -> [(start, end)], half open, left to right.

    A B closes the open span and opens the next; an I continues an open span and is outside otherwise; an O closes (M 3.3).

    Args:
      allowed: bool[T], positions where a span may be; elsewhere labels count as O. The reference decodes prompt, image
        and answer alike and so emits masks for words of the question (D27 of M 10.3); pass the assistant's tokens.
    """
    labels = np.asarray(labels)
    if allowed is not None:
        labels = np.where(allowed, labels, OUTSIDE)
    spans, start = [], None
    for t, label in enumerate(labels.tolist()):
        if start is not None and label != INSIDE:
            spans.append((start, t))
            start = None
        if label == BEGIN:
            start = t
    if start is not None:
        spans.append((start, len(labels)))
    return spans


def named_spans(labels, offsets):
    """Spans of generated tokens that cover a character of the answer, which </s> alone does not.

    Args:
      labels: int[T]. offsets: [(start, end)], the characters of each token.
    """
    return [(a, b) for a, b in decode_spans(labels) if offsets[b - 1][1] > offsets[a][0]]


def span_counts(predicted, target):
    """Exact boundaries: {"matched", "predicted", "target"}."""
    return {"matched": len(set(predicted) & set(target)), "predicted": len(set(predicted)), "target": len(set(target))}


def span_scores(counts):
    """Micro-averaged precision, recall and F1 over a list of `span_counts`."""
    total = {key: sum(c[key] for c in counts) for key in ("matched", "predicted", "target")}
    return precision_recall_f1(total["matched"], total["predicted"], total["target"])


def bio_counts(predicted, target, allowed=None):
    """Per class of the target labels: int64[3, 2] with columns (correct, total).

    Args:
      predicted, target: int[T]. allowed: bool[T] positions that count; None counts all, image and padding included, as
      the reference does. A class that is absent counts nothing (the reference charges one wrong token, D41 of D 7.3).
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    allowed = np.ones(target.shape, bool) if allowed is None else allowed
    rows = [((predicted == c) & (target == c) & allowed, (target == c) & allowed) for c in (OUTSIDE, BEGIN, INSIDE)]
    return np.array([[hit.sum(), total.sum()] for hit, total in rows], np.int64)


def bio_accuracy(counts):
    """Sum of `bio_counts` -> {"O", "B", "I": correct / total}; None for a class that never occurs."""
    return {name: float(hit / total) if total else None for name, (hit, total) in zip("OBI", np.asarray(counts), strict=True)}


def strip(text, start, end):
    """The range without white space at either end; a token's ▁ brings the space before it along."""
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return start, start + len(text[start:end].rstrip())
