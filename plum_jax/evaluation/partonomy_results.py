"""Records of instances.jsonl -> `protocols` of results.json and the summary of a run (design 1, D 5.1, D 5.9, D 5.10).

Everything here works on plain records, so that the numbers can be recomputed from the file alone. A protocol has a question
type only where some record has an answer of it.
"""

import numpy as np

from plum_jax.evaluation import headline, masks, spans, text
from plum_jax.evaluation import result_groups as groups
from plum_jax.evaluation.choosing import PUBLISHED, answered, named_parts
from plum_jax.evaluation.headline import floats
from plum_jax.evaluation.prediction import GT_ANSWER, GT_SPANS, OWN

IDENTIFICATION = "identification_with_label"  # the type that the headline numbers are about (design 1)
SUMMARY_KEYS = (
    "span_f1", "gmiou_macro", "gmiou_micro", "gmiou_macro_published", "part_accuracy", "object_accuracy", "false_mask_rate",
    "n_instances", "n_skipped",
)  # fmt: skip
BLOCK_OF = {GT_SPANS: "published", GT_ANSWER: "middle", OWN: "end_to_end"}  # eval.grounding -> key of a record


def scored(records):
    """The records of questions that were not skipped."""
    return [r for r in records if "skipped" not in r]


def by_type(records):
    """{question type: records}, types sorted."""
    found = {}
    for record in sorted(records, key=lambda r: r["question_type"]):
        found.setdefault(record["question_type"], []).append(record)
    return found


def counts(records):
    """`counts` of results.json: {"scored", "skipped": {reason: n}}."""
    reasons = [r["skipped"] for r in records if "skipped" in r]
    return {
        "scored": len(records) - len(reasons),
        "skipped": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


def protocols(records, measure="answer_mean", tie="wrong"):
    """`protocols` of results.json.

    Args:
      records: of instances.jsonl; skipped ones are left out.
      measure, tie: the rule of the end-to-end choices, `eval.mc_score` and `eval.tie`.
    """
    types = by_type(scored(records))
    make = {
        "published": published,
        "middle": middle,
        "end_to_end": lambda r: end_to_end(r, measure, tie),
        "generation": generation,
    }
    result = {}
    for protocol, group in make.items():
        result[protocol] = {}
        for name, some in types.items():
            mine = [r for r in some if r.get(protocol) is not None or _chose(r, protocol)]
            if mine:
                result[protocol][name] = {
                    **group(mine),
                    "n_without_answer": len(some) - sum(r.get(protocol) is not None for r in some),
                }
    return result


def _chose(record, protocol):
    """A model that gives no masks still has text results in the two protocols with choices."""
    key = {"published": "predicted_published", "end_to_end": "predicted"}.get(protocol)
    return key is not None and answered(record, key) is not None


def published(records):
    """Metric groups and keys of D 5.9 for the records of one question type; what else there is has groups of its own."""
    have = [r for r in records if r.get("published") is not None]
    blocks = [r["published"] for r in have]
    pairs, strict = groups.strategy_pairs(blocks), groups.strict_pairs(blocks)
    rims = groups.boundary_pairs(blocks, "boundary_ious", "boundary_gmIoU-paired")
    ratios = {
        **headline.mask_ratios(pairs),
        **headline.mask_ratios(strict, "strict_macro", "strict_micro"),
        **headline.mask_ratios(rims, "boundary_macro", "boundary_micro"),
    }
    return {
        **groups.reduce(pairs),
        **groups.choice_text(records, "predicted_published", "object_predicted_published", "published"),
        **groups.reduce(strict, "strict_macro", "strict_micro"),
        **groups.reduce(rims, "boundary_macro", "boundary_micro"),
        **groups.choice_details(records, *PUBLISHED),
        "mask_baselines": groups.baseline_masks(records),
        "by_area": groups.areas(have, blocks),
        "mask_relations": groups.relations(have, blocks),
        "empty_union_pairs": groups.empty_union(blocks),
        **groups.sizes(records),
        "n_pairs": sum(len(p) for p in pairs["gmIoU-paired"]),
        "n_without_mask": sum(not b["ious"]["paired"] for b in blocks),
        "interval_95": _intervals(records, have, ratios, "published", "predicted_published", "object_predicted_published"),
    }


def middle(records):
    """The correct answer with the model's own spans: what tagging and masks are worth when the words are right."""
    return _named(records, "middle", {})


def end_to_end(records, measure="answer_mean", tie="wrong"):
    """The chosen answer with the model's own spans."""
    texts = {
        **groups.choice_text(records, "predicted", "object_predicted", "end_to_end"),
        **groups.choice_details(records, measure, tie),
    }
    return _named(records, "end_to_end", texts, predicted=("predicted", "object_predicted"))


def generation(records):
    """Free text with the model's own spans, whose phrases are matched to the parts by rules."""
    blocks = [r["generation"] for r in records]
    exact, rules = (groups.named_counts(blocks, key) for key in ("exact", "rules"))
    return _named(records, "generation", {"part_text": exact, "part_text_rules": rules})


def _named(records, protocol, texts, predicted=None):
    """The groups of a protocol that matches masks to parts by name."""
    have = [r for r in records if r.get(protocol) is not None]
    blocks = [r[protocol] for r in have]
    pairs = {**groups.strict_pairs(blocks), **groups.strategy_pairs(blocks)}
    rims = groups.boundary_pairs(blocks, "boundary_pair_ious", groups.BOUNDARY)
    ratios = {**headline.mask_ratios(pairs), **headline.mask_ratios(rims, "boundary_macro", "boundary_micro")}
    ratios["false_mask_rate",] = [np.array([b[key] for b in blocks], np.float64) for key in ("false_masks", "masks")]
    if all(b.get("span_counts") for b in blocks):
        table = [[b["span_counts"][key] for key in ("matched", "predicted", "target")] for b in blocks]
        ratios.update(headline.text_ratios("span", table))
    if protocol == "generation":
        for group, key in (("part_text", "exact"), ("part_text_rules", "rules")):
            ratios.update(headline.text_ratios(group, [b["named_parts"][key] for b in blocks]))
    return {
        **groups.reduce(pairs),
        **groups.reduce(rims, "boundary_macro", "boundary_micro"),
        **texts,
        **groups.tagging(blocks),
        "false_mask_rate": groups.false_mask_rate(blocks),
        "absent_parts": groups.absent_parts(blocks),
        "mask_baselines": groups.baseline_masks(records),
        "by_area": groups.areas(have, blocks),
        "mask_relations": groups.relations(have, blocks),
        "mask_scores": groups.mask_scores(blocks),
        "empty_union_pairs": groups.empty_union(blocks),
        **groups.sizes(records),
        **groups.mask_counts(have, blocks),
        "interval_95": _intervals(records, have, ratios, protocol, *(predicted or ())),
    }


def _intervals(records, have, ratios, protocol, part_key=None, object_key=None):
    """Bootstrap intervals over images: of masks over the records that have an answer, of choices over all."""
    found = headline.intervals(have, ratios)
    if part_key:
        objects = [(answered(r, object_key), r["object_correct"]) for r in records]
        stated = [(named_parts(r, part_key), r["gt_parts"]) for r in records]
        exact = [None if s is None else (text.part_matches(s, gt), len(s), len(gt)) for s, gt in stated]
        rules = [(r.get("part_matches_rules") or {}).get(protocol) for r in records]
        choices = {
            ("mc_part_text", "accuracy"): headline.accuracy_ratio([(answered(r, part_key), r["correct"]) for r in records]),
            ("mc_object_text", "accuracy"): headline.accuracy_ratio(objects),
            **headline.text_ratios("part_text", exact),
            **headline.text_ratios("part_text_rules", rules),
        }
        found.update(headline.intervals(records, choices))
        found["part_accuracy"] = found["mc_part_text"]["accuracy"]
    found["gmiou_macro"] = found["mask_macro"].get(groups.STRICT if protocol != "published" else "gmIoU-paired")
    return found


def summary(records, n_skipped=0, *, grounding=OWN, match="paired_strict"):
    """M of design 1: the headline numbers on identification with label, and the same keys per type.

    `object_accuracy` at the top is pooled over the types that ask for the object; per type it is None where none is asked.
    A number is None where there is nothing to average.

    Args:
      n_skipped: added to the number of skipped records.
      grounding, match: `eval.grounding` and `eval.match`: which answer's masks, and which of its pairs, gmiou_macro and
        gmiou_micro are about. All of them stand side by side in `protocols`.
    """
    n_skipped += len(records) - len(scored(records))
    records = scored(records)
    types = by_type(records)
    per_type = {name: _summarise(group, grounding, match) for name, group in types.items()}
    result = dict(per_type.get(IDENTIFICATION, dict.fromkeys(SUMMARY_KEYS)))
    result.update(n_instances=len(types.get(IDENTIFICATION, [])), n_skipped=n_skipped)
    result["object_accuracy"] = _object_accuracy(records)
    return {**result, "by_question_type": per_type}


def _object_accuracy(records):
    asked = [(answered(r, "object_predicted"), r["object_correct"]) for r in records if r["object_correct"] is not None]
    asked = [pair for pair in asked if pair[0] is not None]
    return text.accuracy(asked)["accuracy"] if asked else None


def _summarise(records, grounding, match):
    given = [r["published"] for r in records if r.get("published") is not None]
    own = [r["end_to_end"] for r in records if r.get("end_to_end") is not None]
    chosen = [r[BLOCK_OF[grounding]] for r in records if r.get(BLOCK_OF[grounding]) is not None]
    pairs = [floats(b["pair_ious"].values() if match == "paired_strict" else b["ious"][match]) for b in chosen]
    counted = [b["span_counts"] for b in own if b.get("span_counts")]
    stated = [(p, r["correct"]) for r in records if (p := answered(r, "predicted")) is not None]
    return {
        "span_f1": spans.span_scores(counted)["f1"] if counted else None,
        "gmiou_macro": masks.macro(pairs),
        "gmiou_micro": masks.micro(pairs),
        "gmiou_macro_published": masks.macro([floats(b["ious"]["paired"]) for b in given]),
        "part_accuracy": text.accuracy(stated)["accuracy"] if stated else None,
        "object_accuracy": _object_accuracy(records),
        "false_mask_rate": groups.false_mask_rate(own),
        "n_instances": len(records),
        "n_skipped": 0,
    }


def calibration_pairs(records):
    """(raw confidence, IoU) of every non-empty own mask; one whose phrase names nothing visible has IoU 0."""
    blocks = [r["end_to_end"] for r in scored(records) if r.get("end_to_end") is not None]
    found = [s for b in blocks for s in b["spans"] if s["status"] != "empty_mask" and s.get("raw") is not None]
    return np.array([s["raw"] for s in found]), np.array([s["iou"] or 0.0 for s in found])
