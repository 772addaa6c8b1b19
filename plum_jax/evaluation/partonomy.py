"""PARTONOMY: predictions -> records (instances.jsonl) -> results.json and the summary of a run (D 5.1 to D 5.10).

Predictions come from `plum evaluate` or from any other model; nothing here needs jax. Everything after `score` works on plain
records, so that the numbers can be recomputed from that file alone.
"""

import numpy as np

from plum_jax import coco
from plum_jax.evaluation import masks, spans, text
from plum_jax.evaluation.prediction import GT_SPANS, OWN
from plum_jax.evaluation.targets import target_masks
from plum_jax.evaluation.text import normalise

IDENTIFICATION = "identification_with_label"  # the type that the headline numbers are about (design 1)
PUBLISHED_MEASURE = "full_mean"  # the choice score of the published protocol (D 5.1)
RESAMPLES, INTERVAL, BOOTSTRAP_SEED = 1000, 0.95, 0
SUMMARY_KEYS = (
    "span_f1", "gmiou_macro", "gmiou_micro", "gmiou_macro_published", "part_accuracy", "object_accuracy", "false_mask_rate",
    "n_instances", "n_skipped",
)  # fmt: skip


class Scorer:
    """Question and Prediction -> record. Target masks and their run lengths are kept for the questions of one image.

    Args:
      split: for the ids. source: the question file, for messages.
      settings: {"mc_score", "tie", "empty_union"}, values of the switches of config.eval with these names.
    """

    def __init__(self, split, source, settings):
        self.split, self.source, self.settings = split, source, settings
        self.options = {"empty_union": settings["empty_union"]}
        self._instance = None, None, None

    def _targets(self, question, index, hw):
        """-> ({part: bool[H, W]} of all visible parts, {part: RLE} of those encoded so far)."""
        key = question.image_path, question.segmentations
        if self._instance[0] != key:
            self._instance = key, target_masks(question, hw, self.source, index), {}
        return self._instance[1:]

    def score(self, question, prediction, hw):
        """One record of instances.jsonl.

        Args:
          question: records.Question. prediction: its Prediction, with answers. hw: size of the upright image.
        """
        targets = self._targets(question, prediction.index, hw)
        parts, scores = list(question.correct_parts), prediction.choice_scores
        chosen = self._choices(question, scores)
        return {
            "instance_id": f"{self.split}/{prediction.index:06d}",
            "image_path": question.image_path,
            "image_label": question.image_label,
            "question_type": question.question_type,
            "questions": _questions(question),
            "choices": list(question.answer_choices),
            "choice_parts": [list(names) for names in question.answer_parts],
            "scores": scores["part"],
            "correct": question.correct,
            "predicted": chosen["part"][0],
            "predicted_published": chosen["part"][1],
            "object_choices": _list(question.object_answer_choices),
            "object_scores": scores.get("object"),
            "object_correct": question.object_correct,
            "object_predicted": chosen["object"][0],
            "object_predicted_published": chosen["object"][1],
            "gt_parts": parts,
            "gt_masks": [_rle(targets, part) for part in parts],
            "published": self._published(prediction.answers[GT_SPANS], parts, targets[0]),
            "end_to_end": self._end_to_end(prediction.answers[OWN], question, targets[0]),
        }

    def _choices(self, question, scores):
        """{"part", "object": (chosen answer, answer chosen by the published rule)}, Nones where nothing is asked."""
        found = {"part": (None, None), "object": (None, None)}
        for kind, correct in (("part", question.correct), ("object", question.object_correct)):
            if kind in scores:
                own = text.choose(scores[kind][self.settings["mc_score"]], tie=self.settings["tie"], correct=correct)
                found[kind] = own, text.choose(scores[kind][PUBLISHED_MEASURE])  # the first of equal scores, D 5.1
        return found

    def _published(self, answer, parts, targets):
        """The reference's protocol: correct answer, constructed spans, masks paired by position (D 5.1)."""
        found = [coco.decode(span.mask) for span in answer.spans]
        ious = masks.all_strategies(found, [targets[part] for part in parts], **self.options)
        entries = [
            {"phrase": span.phrase, "char": _list(span.char), "mask": span.mask, "part": part, "iou": _number(iou)}
            for span, part, iou in zip(answer.spans, parts, ious["paired"], strict=True)
        ]
        return {
            "spans": entries,
            "gmiou": masks.macro([ious["paired"]]),
            "ious": {name: [_number(x) for x in values] for name, values in ious.items()},
        }

    def _end_to_end(self, answer, question, targets):
        """Chosen answer, the model's own spans, masks matched to parts by name; a missing mask scores 0 (D 5.2)."""
        visible = {normalise(name): name for name in targets}
        entries, by_part = [], {}
        for span in answer.spans:
            # The answer may use another word for a part than the annotation (D28): its own list says which part it means.
            part = visible.get(normalise(span.part or span.phrase), visible.get(normalise(span.phrase)))
            mask = coco.decode(span.mask)
            iou = _number(masks.iou(mask, targets[part], **self.options)) if part else None
            entry = {"phrase": span.phrase, "char": _list(span.char), "mask": span.mask, "score": span.score, "raw": span.raw}
            entries.append({**entry, "status": span.status, "part": part, "iou": iou})
            if span.status == "ok" and part:
                by_part.setdefault(part, mask)
        wanted = {part: targets[part] for part in question.correct_parts}
        pairs, _ = masks.paired_strict(by_part, wanted, **self.options)
        emitted = [entry for entry in entries if entry["status"] == "ok"]
        return {
            "answer": answer.text,
            "status": "no_span_tagged" if not entries else "ok" if emitted else entries[0]["status"],
            "spans": entries,
            "gmiou_strict": masks.macro([list(pairs.values())]),
            "pair_ious": {name: _number(value) for name, value in pairs.items()},
            "span_counts": answer.span_counts,
            "bio_counts": [list(pair) for pair in answer.bio_counts],
            "false_masks": sum(entry["part"] is None for entry in emitted),
            "masks": len(emitted),
        }


def _questions(question):
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
