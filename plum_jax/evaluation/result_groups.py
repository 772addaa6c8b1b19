"""Records of one question type -> the metric groups of one protocol, each metric with its full name (D 5.2 to D 5.5, D 5.9)."""

import numpy as np

from plum_jax.evaluation import calibration, masks, spans, text
from plum_jax.evaluation.area_bins import by_area
from plum_jax.evaluation.baselines import NAMES as BASELINES
from plum_jax.evaluation.choosing import answered, by_measure, named_parts, two_questions
from plum_jax.evaluation.headline import floats

STRICT = "gmIoU-paired_strict"
BOUNDARY = "boundary_gmIoU-paired_strict"


def strategy_pairs(blocks, names=masks.STRATEGIES):
    """{metric: per question the IoUs of its pairs}, of blocks of records."""
    return {f"gmIoU-{name}": [floats((b.get("ious") or {}).get(name) or []) for b in blocks] for name in names}


def strict_pairs(blocks):
    return {STRICT: [floats(b["pair_ious"].values()) for b in blocks]} if all("pair_ious" in b for b in blocks) else {}


def boundary_pairs(blocks, key, metric):
    """{metric: pairs} of Boundary IoU; nothing for records without it."""
    if not all(key in b for b in blocks):
        return {}
    return {metric: [floats(b[key].values() if isinstance(b[key], dict) else b[key]) for b in blocks]}


def reduce(pairs, macro="mask_macro", micro="mask_micro"):
    """Pairs -> the two groups of means."""
    return {
        macro: {name: masks.macro(values) for name, values in pairs.items()},
        micro: {name: masks.micro(values) for name, values in pairs.items()},
    }


def choice_text(records, part_key, object_key, protocol):
    """Text groups of the chosen answers. The first four are those of D 5.9."""
    stated = [r for r in records if answered(r, part_key) is not None]
    chosen = [(named_parts(r, part_key), r["gt_parts"]) for r in stated]
    objects = [r for r in records if r["object_correct"] is not None]
    asked = [(answered(r, object_key), r["object_correct"]) for r in objects]
    rules = [c for c in ((r.get("part_matches_rules") or {}).get(protocol) for r in records) if c]
    return {
        "part_text": text.part_text(chosen),
        "random_part_text": text.random_part_text([r["choice_parts"] for r in records], [r["gt_parts"] for r in records]),
        "mc_part_text": text.accuracy([(answered(r, part_key), r["correct"]) for r in stated]),
        "mc_object_text": text.accuracy([(o, c) for o, c in asked if o is not None]),
        "part_text_rules": text.precision_recall_f1(*np.sum(rules, axis=0).tolist()) if rules else None,
        "random_accuracy": {
            "part": float(np.mean([1 / len(r["choices"]) for r in records])) if records else None,
            "object": float(np.mean([1 / len(r["object_choices"]) for r in objects])) if objects else None,
        },
    }


def choice_details(records, measure, tie):
    """Accuracy by every measure, and of the second of two questions after either first answer."""
    return {"accuracy_by_score": by_measure(records, tie), "two_questions": two_questions(records, measure, tie)}


def baseline_masks(records):
    """{baseline: {"mask_macro": {"gmIoU-paired_strict"}, "mask_micro"}} of masks that look at nothing."""
    found = [r["baselines"] for r in records if r.get("baselines")]
    return {name: reduce({STRICT: [floats(b[name]) for b in found]}) for name in BASELINES} if found else None


def areas(records, blocks):
    """Strict IoU by the size of the part."""
    pairs = [pair for r, b in zip(records, blocks, strict=True) for pair in _with_areas(r, b)]
    shares, ious = zip(*pairs, strict=True) if pairs else ((), ())
    return by_area(shares, floats(ious))


def _with_areas(record, block):
    shares = dict(zip(record["gt_parts"], record.get("gt_areas") or (), strict=False))
    return [(shares[part], iou) for part, iou in block.get("pair_ious", {}).items() if part in shares]


def relations(records, blocks):
    """Where the masks of an answer lie. The region of the object is the union of its annotated parts."""
    return {
        "part_inside_object": {**_mean(b.get("inside_object") for b in blocks), "object": "union of its annotated parts"},
        "sibling_overlap": _mean(b.get("overlap") for b in blocks),
        "sibling_overlap_of_targets": _mean(r.get("gt_overlap") for r in records),
    }


def _mean(lists):
    values = floats([x for some in lists for x in some or ()])
    values = values[~np.isnan(values)]
    return {"mean": float(values.mean()) if values.size else None, "n": int(values.size)}


def empty_union(blocks):
    """{strategy: pairs of two empty masks}, whose score is a matter of policy."""
    found = [b["empty_pairs"] for b in blocks if "empty_pairs" in b]
    return {name: sum(f[name] for f in found) for name in (found[0] if found else ())}


def false_mask_rate(blocks):
    """Share of the given masks whose phrase names no visible part; None when there is no mask."""
    given = sum(b["masks"] for b in blocks)
    return sum(b["false_masks"] for b in blocks) / given if given else None


def absent_parts(blocks):
    """Of the parts that the answers name and the objects do not show, the share that got a mask all the same."""
    named, masked = (sum(b.get(key, 0) for b in blocks) for key in ("absent_parts", "absent_parts_with_mask"))
    return {"false_mask_rate": masked / named if named else None, "named": named, "with_mask": masked}


def tagging(blocks):
    """Span and tag scores of the blocks that have them."""
    counts = [b["span_counts"] for b in blocks if b.get("span_counts")]
    tags = [np.array(b["bio_counts"]) for b in blocks if b.get("bio_counts")]
    return {
        "span": spans.span_scores(counts) if counts else None,
        "bio_accuracy": spans.bio_accuracy(sum(tags)) if tags else None,
    }


def named_counts(blocks, key):
    """Sum of the counts of named parts of free text -> precision, recall, F1."""
    found = [b["named_parts"][key] for b in blocks]
    return text.precision_recall_f1(*np.sum(found, axis=0).tolist()) if found else None


def mask_scores(blocks):
    """Reliability of the scores of all masks that are not empty; a mask of nothing visible has IoU 0. None without scores."""
    found = [s for b in blocks for s in b["spans"] if s["status"] != "empty_mask" and s.get("score") is not None]
    return calibration.reliability([s["score"] for s in found], [s["iou"] or 0.0 for s in found]) if found else None


def sizes(records):
    """How many questions and images stand behind the numbers."""
    return {"n_instances": len(records), "n_images": len({r["image_path"] for r in records})}


def mask_counts(records, blocks):
    """Pairs by name, those of them without a mask, and masks that are in no pair though they name a visible part."""
    grounded = [{s["part"] for s in b["spans"] if s["status"] == "ok"} for b in blocks]
    return {
        "n_pairs": sum(len(b["pair_ious"]) for b in blocks),
        "n_missing_masks": sum(len(set(r["gt_parts"]) - g) for r, g in zip(records, grounded, strict=True)),
        "n_extra_masks": sum(b.get("extra_masks", 0) for b in blocks),
    }
