"""Referring, reasoning and semantic segmentation: one mask against one target, and the two means of the field. NumPy only.

gIoU is the mean of the IoU over samples; cIoU is the intersection of all samples over their union, which large objects decide
(LISA, arXiv 2308.00692, section 4.1; cIoU is the "overall IoU" of older papers, gIoU their "mean IoU"). A sample that means
nothing in the image has IoU 1 for an empty mask and 0 otherwise, and the pixels of a wrong mask add to the union (GRES, arXiv
2306.00968, section 5.1, which also defines N-acc and T-acc).
"""

import numpy as np

from plum_jax import coco

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


def compare(predicted, target, ignore=None, *, least_pixels=0, ignored_as_foreground=False):
    """One mask against its target.

    Args:
      predicted: bool[H, W]. target: bool[H, W], or None where nothing is meant.
      ignore: bool[H, W], pixels that count neither for nor against, or None.
      least_pixels: a mask of fewer pixels counts as empty, as in the tables of GRES (50).
      ignored_as_foreground: `gmiou` alone counts the ignored pixels as part of the target, as the gmIoU of the reference's
        validation does (D33 of D 7.3); its gIoU and cIoU leave them out.

    Returns:
      {"intersection", "union": pixels, "iou", "gmiou": in [0, 1], "pixels": of the prediction}.

    Raises:
      ValueError: masks of different sizes.
    """
    target = np.zeros(predicted.shape, bool) if target is None else target
    for mask, name in ((target, "target"), (ignore, "ignored pixels")):
        if mask is not None and mask.shape != predicted.shape:
            raise ValueError(f"mask is {predicted.shape[0]} x {predicted.shape[1]}, {name} {mask.shape[0]} x {mask.shape[1]}")
    if predicted.sum() < least_pixels:
        predicted = np.zeros_like(predicted)
    whole = _overlap(predicted, target | ignore) if ignore is not None and ignored_as_foreground else None
    if ignore is not None:
        predicted, target = predicted & ~ignore, target & ~ignore
    intersection, union = _overlap(predicted, target)
    return {
        "intersection": intersection, "union": union, "iou": _ratio(intersection, union),
        "gmiou": _ratio(*(whole or (intersection, union))), "pixels": int(predicted.sum()),
    }  # fmt: skip


def _overlap(a, b):
    return int((a & b).sum()), int((a | b).sum())


def _ratio(intersection, union):
    return intersection / union if union else 1.0


def union_of(spans, hw):
    """bool[H, W]: the masks of the usable spans of an answer, united; empty without any."""
    united = np.zeros(tuple(hw), bool)
    for span in spans:
        if span.status == "ok":
            united |= coco.decode(span.mask)
    return united


def summary(records):
    """Scored samples -> the numbers of a table; None where a mean has nothing to average.

    Args:
      records: dictionaries of `compare` with "has_target", "has_span" (bool) and "image_path" added.
    """
    with_target = [r for r in records if r["has_target"]]
    without = [r for r in records if not r["has_target"]]
    by_image = {}
    for record in records:
        by_image.setdefault(record["image_path"], []).append(record["gmiou"])
    union = sum(r["union"] for r in records)
    result = {
        "giou_mean_over_samples": _mean([r["iou"] for r in records]),
        "ciou_cumulative": sum(r["intersection"] for r in records) / union if union else None,
        **{f"precision_at_{x}": _mean([r["iou"] >= x for r in with_target]) for x in PRECISION_AT},
        "gmiou_micro": _mean([r["gmiou"] for r in records]),
        "gmiou_macro": _mean([np.mean(ious) for ious in by_image.values()]),
        "n_samples": len(records),
        "n_images": len(by_image),
        "n_no_target": len(without),
        "n_without_span": sum(not r["has_span"] for r in records),
        "n_empty_masks": sum(not r["pixels"] for r in records),
    }
    if without:
        result.update(
            n_acc=_mean([not r["pixels"] for r in without]),
            t_acc=_mean([r["pixels"] > 0 for r in with_target]),
            giou_mean_over_samples_with_target=_mean([r["iou"] for r in with_target]),
        )
    return result


def class_summary(records):
    """Scored samples with a "name" -> IoU of each class over all its samples (its intersection over its union), and the mean.

    A class is asked for where it is, so that its false masks in other images are not seen: this mean is an upper bound of
    the mIoU of closed-set segmentation.
    """
    totals = {}
    for record in records:
        counts = totals.setdefault(record["name"], np.zeros(3, np.int64))
        counts += (record["intersection"], record["union"], 1)
    classes = {
        name: {"iou_cumulative": float(i / u) if u else None, "n_samples": int(n)} for name, (i, u, n) in sorted(totals.items())
    }
    found = [c["iou_cumulative"] for c in classes.values() if c["iou_cumulative"] is not None]
    return {"miou_of_classes_present": _mean(found), "n_classes": len(classes), "classes": classes}


def _mean(values):
    return float(np.mean(values)) if len(values) else None
