"""PARTONOMY: outcomes -> records (instances.jsonl) -> results.json and the summary of a run (D 5.1 to D 5.10).

Everything after `score` works on plain records, so that the numbers can be recomputed from the file alone.
"""

import numpy as np

from plum_jax import coco
from plum_jax.evaluation import masks, spans, text
from plum_jax.evaluation.runner import target_masks
from plum_jax.evaluation.text import normalise

IDENTIFICATION = "identification_with_label"  # the type that the headline numbers are about (design 1)
RESAMPLES, INTERVAL, BOOTSTRAP_SEED = 1000, 0.95, 0
SUMMARY_KEYS = (
    "span_f1", "gmiou_macro", "gmiou_micro", "gmiou_macro_published", "part_accuracy", "object_accuracy", "false_mask_rate",
    "n_instances", "n_skipped",
)  # fmt: skip


class Scorer:
    """Outcomes of a run -> records. Target masks and their run lengths are kept for the questions of one image.

    Args:
      model: inference.Model. split: for the ids. source: the question file, for messages.
      empty_union: what two empty masks score, a key of `masks.EMPTY_UNION`.
    """

    def __init__(self, model, split, source, empty_union="one"):
        self.model, self.split, self.source, self.options = model, split, source, {"empty_union": empty_union}
        self._instance = None, None, None

    def _targets(self, outcome):
        """-> ({part: bool[H, W]} of all visible parts, {part: RLE} of those encoded so far)."""
        key = outcome.question.image_path, outcome.question.segmentations
        if self._instance[0] != key:
            hw = outcome.images.original_hw[outcome.image]
            self._instance = key, target_masks(outcome.question, hw, self.source, outcome.index), {}
        return self._instance[1:]

    def score(self, outcome):
        """Outcome -> one record of instances.jsonl."""
        question, targets = outcome.question, self._targets(outcome)
        parts = list(question.correct_parts)
        record = {
            "instance_id": f"{self.split}/{outcome.index:06d}",
            "image_path": question.image_path,
            "image_label": question.image_label,
            "question_type": question.question_type,
            "questions": _questions(outcome),
            "choices": list(question.answer_choices),
            "choice_parts": [list(names) for names in question.answer_parts],
            "scores": outcome.scores["part"],
            "correct": question.correct,
            "predicted": outcome.predicted["part"],
            "predicted_published": outcome.predicted_published["part"],
            "object_choices": _list(question.object_answer_choices),
            "object_scores": outcome.scores.get("object"),
            "object_correct": question.object_correct,
            "object_predicted": outcome.predicted.get("object"),
            "object_predicted_published": outcome.predicted_published.get("object"),
            "gt_parts": parts,
            "gt_masks": [_rle(targets, part) for part in parts],
        }
        pairs = self._masks(outcome, outcome.truth)
        record["published"] = self._published(outcome, pairs, targets[0])
        own = pairs if outcome.own.low_res is outcome.truth.low_res else self._masks(outcome, outcome.own)
        record["end_to_end"] = self._end_to_end(outcome, own, targets[0])
        return record

    def _masks(self, outcome, span_set):
        """[(mask bool[H, W], foreground probability in it, RLE)] of a span set."""
        found = [self.model.mask(low_res, 1.0, outcome.images, outcome.image) for low_res in span_set.low_res]
        return [(mask, raw, coco.encode(mask)) for mask, raw in found]

    def _published(self, outcome, found, targets):
        """The reference's protocol: correct answer, constructed spans, masks paired by position (D 5.1)."""
        row = outcome.part.rows[outcome.part.correct]
        parts = list(row.choice.parts)
        ious = masks.all_strategies([mask for mask, _, _ in found], [targets[p] for p in parts], **self.options)
        entries = []
        for i, ((start, end), (_, _, rle)) in enumerate(zip(outcome.truth.ranges, found, strict=True)):
            a, b = row.characters(start, end)
            entries.append(
                {"phrase": row.answer[a:b], "char": [a, b], "mask": rle, "part": parts[i], "iou": _number(ious["paired"][i])}
            )
        return {
            "spans": entries,
            "gmiou": masks.macro([ious["paired"]]),
            "ious": {name: [_number(x) for x in values] for name, values in ious.items()},
        }

    def _end_to_end(self, outcome, found, targets):
        """Chosen answer, the model's own spans, masks matched to parts by name; a missing mask scores 0 (D 5.2)."""
        row = outcome.part.rows[outcome.predicted["part"]]
        visible = {normalise(name): name for name in targets}
        constructed = dict(zip(row.targets, row.choice.parts, strict=True))
        entries, by_part = [], {}
        for span, sure, (mask, inside, rle) in zip(outcome.own.ranges, outcome.own.confidence, found, strict=True):
            a, b = row.characters(*span)
            phrase, raw = row.answer[a:b], inside * sure
            score, status = self.model.judge(mask, raw)
            # The answer may use another word for a part than the annotation (D28): its own list says which part it means.
            part = visible.get(normalise(constructed.get(span, phrase)), visible.get(normalise(phrase)))
            iou = _number(masks.iou(mask, targets[part], **self.options)) if part else None
            entry = {"phrase": phrase, "char": [a, b], "mask": rle, "score": round(score, 6), "raw": round(raw, 6)}
            entries.append({**entry, "status": status, "part": part, "iou": iou})
            if status == "ok" and part:
                by_part.setdefault(part, mask)
        wanted = {part: targets[part] for part in outcome.question.correct_parts}
        pairs, _ = masks.paired_strict(by_part, wanted, **self.options)
        emitted = [entry for entry in entries if entry["status"] == "ok"]
        return {
            "answer": row.answer,
            "status": "no_span_tagged" if not entries else "ok" if emitted else entries[0]["status"],
            "spans": entries,
            "gmiou_strict": masks.macro([list(pairs.values())]),
            "pair_ious": {name: _number(value) for name, value in pairs.items()},
            "span_counts": outcome.counts,
            "bio_counts": outcome.bio.tolist(),
            "false_masks": sum(entry["part"] is None for entry in emitted),
            "masks": len(emitted),
        }


def _questions(outcome):
    question = outcome.question
    asked = {"part": question.question, "object": question.object_question}
    order = ("object", "part") if question.question_type == "whole_to_part" else ("part", "object")
    return [asked[kind] for kind in order if asked[kind]]


def _rle(targets, part):
    found, encoded = targets
    if part not in encoded:
        encoded[part] = coco.encode(found[part])
    return encoded[part]


def _list(values):
    return None if values is None else list(values)


def _number(value):
    """float, or None for NaN (a pair of empty masks under empty_union=skip): JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def _floats(values):
    return np.array([np.nan if v is None else v for v in values], np.float64)


def by_type(records):
    """{question type: records}, types sorted."""
    groups = {}
    for record in sorted(records, key=lambda r: r["question_type"]):
        groups.setdefault(record["question_type"], []).append(record)
    return groups


def published(records):
    """Metric groups and keys of D 5.9 for the records of one question type."""
    ious = {name: [_floats(r["published"]["ious"][name]) for r in records] for name in masks.STRATEGIES}
    return {
        "mask_macro": {f"gmIoU-{name}": masks.macro(values) for name, values in ious.items()},
        "mask_micro": {f"gmIoU-{name}": masks.micro(values) for name, values in ious.items()},
        **_text_groups(records, "predicted_published", "object_predicted_published"),
    }


def end_to_end(records):
    """The same groups under the open protocol, with spans, false masks, counts and bootstrap intervals over images."""
    pairs = [_floats(r["end_to_end"]["pair_ious"].values()) for r in records]
    span = spans.span_scores([r["end_to_end"]["span_counts"] for r in records])
    return {
        "mask_macro": {"gmIoU-paired_strict": masks.macro(pairs)},
        "mask_micro": {"gmIoU-paired_strict": masks.micro(pairs)},
        **_text_groups(records, "predicted", "object_predicted"),
        "span": span,
        "bio_accuracy": spans.bio_accuracy(sum(np.array(r["end_to_end"]["bio_counts"]) for r in records)),
        "false_mask_rate": _false_mask_rate(records),
        "n_instances": len(records),
        "n_images": len({r["image_path"] for r in records}),
        "n_pairs": int(sum(p.size for p in pairs)),
        "n_missing_masks": int(sum(len(set(r["gt_parts"]) - _grounded(r)) for r in records)),
        "interval_95": {
            "gmiou_macro": interval(records, lambda r: r["end_to_end"]["gmiou_strict"]),
            "part_accuracy": interval(records, lambda r: r["predicted"] == r["correct"]),
        },
    }


def _grounded(record):
    return {span["part"] for span in record["end_to_end"]["spans"] if span["status"] == "ok"}


def _text_groups(records, part_key, object_key):
    chosen = [(r["choice_parts"][r[part_key]], r["gt_parts"]) for r in records]
    objects = [(r[object_key], r["object_correct"]) for r in records if r["object_correct"] is not None]
    return {
        "part_text": text.part_text(chosen),
        "random_part_text": text.random_part_text([r["choice_parts"] for r in records], [r["gt_parts"] for r in records]),
        "mc_part_text": text.accuracy([(r[part_key], r["correct"]) for r in records]),
        "mc_object_text": text.accuracy(objects),
    }


def _false_mask_rate(records):
    """Share of the emitted masks whose phrase names no visible part; None when there is no mask."""
    emitted = sum(r["end_to_end"]["masks"] for r in records)
    return sum(r["end_to_end"]["false_masks"] for r in records) / emitted if emitted else None


def interval(records, value):
    """Bootstrap interval of the mean of `value(record)`: images are drawn with replacement (D 5.10). None without values."""
    images = {}
    for record in records:
        number = value(record)
        if number is not None:
            total = images.setdefault(record["image_path"], [0.0, 0])
            total[0] += number
            total[1] += 1
    if not images:
        return None
    totals = np.array([images[path] for path in sorted(images)])
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(len(totals), size=(RESAMPLES, len(totals)))
    sums = totals[draws].sum(1)
    return [float(x) for x in np.quantile(sums[:, 0] / sums[:, 1], [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])]


def protocols(records):
    """`protocols` of results.json (design 1)."""
    groups = by_type(records)
    return {
        "published": {name: published(group) for name, group in groups.items()},
        "end_to_end": {name: end_to_end(group) for name, group in groups.items()},
    }


def summary(records, n_skipped=0):
    """M of design 1: the headline numbers on identification with label, and the same keys per type.

    `object_accuracy` at the top is pooled over the types that ask for the object; per type it is None where none is asked.
    A number is None where there is nothing to average.
    """
    groups = by_type(records)
    per_type = {name: _summarise(group, 0) for name, group in groups.items()}
    headline = dict(per_type.get(IDENTIFICATION, dict.fromkeys(SUMMARY_KEYS)))
    headline.update(n_instances=len(groups.get(IDENTIFICATION, [])), n_skipped=n_skipped)
    headline["object_accuracy"] = _object_accuracy(records)
    return {**headline, "by_question_type": per_type}


def _object_accuracy(records):
    asked = [(r["object_predicted"], r["object_correct"]) for r in records if r["object_correct"] is not None]
    return text.accuracy(asked)["accuracy"] if asked else None


def _summarise(records, n_skipped):
    pairs = [_floats(r["end_to_end"]["pair_ious"].values()) for r in records]
    return {
        "span_f1": spans.span_scores([r["end_to_end"]["span_counts"] for r in records])["f1"],
        "gmiou_macro": masks.macro(pairs),
        "gmiou_micro": masks.micro(pairs),
        "gmiou_macro_published": masks.macro([_floats(r["published"]["ious"]["paired"]) for r in records]),
        "part_accuracy": text.accuracy([(r["predicted"], r["correct"]) for r in records])["accuracy"],
        "object_accuracy": _object_accuracy(records),
        "false_mask_rate": _false_mask_rate(records),
        "n_instances": len(records),
        "n_skipped": n_skipped,
    }


def calibration_pairs(records):
    """(raw confidence, IoU) of every non-empty own mask; one whose phrase names nothing visible has IoU 0."""
    found = [s for r in records for s in r["end_to_end"]["spans"] if s["status"] != "empty_mask"]
    return np.array([s["raw"] for s in found]), np.array([s["iou"] or 0.0 for s in found])
