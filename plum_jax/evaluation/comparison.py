"""Two evaluations of the same questions: paired differences with intervals, and the questions that changed most.

Works on records of instances.jsonl, whoever made them; nothing here needs a model.
"""

import collections
import dataclasses

import numpy as np

from plum_jax.evaluation import bootstrap, headline, text
from plum_jax.evaluation.choosing import answered, named_parts
from plum_jax.evaluation.headline import floats

PROTOCOLS = {"published": "gmIoU-paired", "middle": "gmIoU-paired_strict", "end_to_end": "gmIoU-paired_strict",
             "generation": "gmIoU-paired_strict"}  # fmt: skip
CHOICES = {"published": ("predicted_published", "object_predicted_published"), "end_to_end": ("predicted", "object_predicted")}
CASES_BY = ("end_to_end", "published", "middle", "generation")  # the first that both have ranks the cases
LOWER = ("false_mask_rate",)  # metrics of which less is better
EQUAL = 1e-9  # a smaller difference of a question is none


@dataclasses.dataclass(frozen=True)
class Paired:
    """Records about the same questions, side by side, and how many of either side stand alone."""

    a: list
    b: list
    only_a: int
    only_b: int
    other_targets: int  # the same question with other target masks
    skipped: dict  # {reason: questions that one of the two has no score for}

    @property
    def same_data(self):
        return not (self.only_a or self.only_b or self.other_targets)


def pair(a, b):
    """Two lists of records -> Paired.

    Questions are the same by image, type, texts and parts, not by their place in a file; only one that was skipped is told by
    its place, as nothing else is known of it.
    """
    places = {_place(r): r["skipped"] for r in (*a, *b) if "skipped" in r}
    known = {_place(r) for r in a} & {_place(r) for r in b} & places.keys()
    skipped = collections.Counter(places[place] for place in known)
    left, right = (_keyed([r for r in side if _place(r) not in known]) for side in (a, b))
    both = [key for key in left if key in right]
    same = [key for key in both if _targets(left[key]) == _targets(right[key])]
    return Paired(
        [left[key] for key in same],
        [right[key] for key in same],
        len(left) - len(both),
        len(right) - len(both),
        len(both) - len(same),
        dict(sorted(skipped.items())),
    )


def _about(record):
    return record["image_path"], record["question_type"], record["image_label"]


def _place(record):
    return record["instance_id"], *_about(record)


def _keyed(records):
    """{what a record is about: record}; equal questions are told apart by their order."""
    found, times = {}, collections.Counter()
    for record in sorted(records, key=lambda r: r["instance_id"]):
        texts = (record["instance_id"],)
        if "skipped" not in record:
            texts = tuple(record["questions"]), tuple(sorted(record["choices"])), tuple(record["gt_parts"])
        key = *_about(record), *texts
        times[key] += 1
        found[*key, times[key]] = record
    return found


def _targets(record):
    return [(tuple(mask["size"]), mask["counts"]) for mask in record["gt_masks"]]


def compare(paired):
    """{question type: {protocol: {metric: numbers}}}; numbers are

    {"a", "b": the metric, "difference": b - a, "interval_95": of the difference, bootstrap over images drawn together for both,
    "better", "worse", "equal": questions of which b has a better, worse, equal value, "questions": those with a value of both}.
    """
    types = sorted({record["question_type"] for record in paired.a})
    result = {}
    for kind in types:
        places = [i for i, record in enumerate(paired.a) if record["question_type"] == kind]
        a, b = ([side[i] for i in places] for side in (paired.a, paired.b))
        found = {protocol: _compare(a, b, protocol) for protocol in PROTOCOLS}
        result[kind] = {protocol: numbers for protocol, numbers in found.items() if numbers}
    return result


def _compare(a, b, protocol):
    return differences([record["image_path"] for record in a], *(_ratios(side, protocol) for side in (a, b)))


def differences(images, *ratios):
    """Metrics of two models on the same questions -> {metric: the numbers of `compare`}.

    Args:
      images: of each question. ratios: of a and of b, {metric: (above, below)}, float64[questions] each.
    """
    names = [name for name in ratios[0] if any(side[name][1].any() for side in ratios)]
    if not names:
        return {}
    # [questions, metrics, models, above and below]
    table = np.stack([np.stack([np.stack(side[name], -1) for side in ratios], 1) for name in names], 1)
    total = table.sum(0)
    values = bootstrap.ratio(total[..., 0], total[..., 1])
    draws = bootstrap.resampled(bootstrap.sums_per_image(images, table))
    drawn = bootstrap.ratio(draws[..., 0], draws[..., 1])
    single = bootstrap.ratio(table[..., 0], table[..., 1])
    found, several = {}, len(set(images)) > 1  # one image alone says nothing of others
    for k, name in enumerate(names):
        one, two = (None if np.isnan(x) else float(x) for x in values[k])
        known = single[:, k][~np.isnan(single[:, k]).any(-1)]
        change = (known[:, 1] - known[:, 0]) * (-1 if name in LOWER else 1)
        better, worse = int((change > EQUAL).sum()), int((change < -EQUAL).sum())
        found[name] = {
            "a": one,
            "b": two,
            "difference": None if one is None or two is None else two - one,
            "interval_95": bootstrap.interval(drawn[:, k, 1] - drawn[:, k, 0]) if several else None,
            "better": better,
            "worse": worse,
            "equal": len(known) - better - worse,
            "questions": len(known),
        }
    return found


def _ratios(records, protocol):
    """{metric: (above, below)}, float64[questions] each: the metric is sum(above) / sum(below)."""
    blocks = [record.get(protocol) or {} for record in records]
    key = "ious" if protocol == "published" else "pair_ious"
    pairs = [
        floats((b.get(key) or {}).get("paired") or () if protocol == "published" else (b.get(key) or {}).values())
        for b in blocks
    ]
    found = {".".join(path): ratio for path, ratio in headline.mask_ratios({PROTOCOLS[protocol]: pairs}).items()}
    if protocol in CHOICES:
        part, object_ = CHOICES[protocol]
        chosen = [(answered(r, part), r["correct"]) for r in records]
        objects = [(answered(r, object_), r["object_correct"]) for r in records]
        found["mc_part_text.accuracy"] = headline.accuracy_ratio(chosen)
        found["mc_object_text.accuracy"] = headline.accuracy_ratio(objects)
        named = [(named_parts(r, part), r["gt_parts"]) for r in records]
        counts = [None if said is None else (text.part_matches(said, wanted), len(said), len(wanted)) for said, wanted in named]
        found.update({".".join(path): ratio for path, ratio in headline.text_ratios("part_text", counts).items()})
    if protocol == "generation":
        named = [(b.get("named_parts") or {}).get("exact") for b in blocks]
        found.update({".".join(path): ratio for path, ratio in headline.text_ratios("part_text", named).items()})
    if protocol != "published":
        spans = [b.get("span_counts") for b in blocks]
        counts = [s and (s["matched"], s["predicted"], s["target"]) for s in spans]
        found["span.f1"] = headline.text_ratios("span", counts)["span", "f1"]
        found["false_mask_rate"] = tuple(floats([b.get(key, 0) for b in blocks]) for key in ("false_masks", "masks"))
    return found


def cases(paired, most):
    """The questions that changed most, by the IoU of the answer's parts, then by whether the choice is right.

    Returns:
      [{"instance_id", "image_path", "image_label", "question_type", "question", "correct_answer", "parts", "protocol", "a",
      "b", "difference"}] with {"instance_id", "answer", "right", "iou", "part_ious"}
      of each side; at most `most`, all of which changed.
    """
    protocol = next((p for p in CASES_BY if any(r.get(p) for r in paired.a) and any(r.get(p) for r in paired.b)), None)
    found = [_case(a, b, protocol) for a, b in zip(paired.a, paired.b, strict=True)]
    changed = [case for case in found if max(_change(case)) > EQUAL]
    return sorted(changed, key=lambda case: (*(-x for x in _change(case)), case["instance_id"]))[:most]


def _change(case):
    return abs(case["difference"] or 0.0), int(case["a"]["right"] != case["b"]["right"])


def _case(a, b, protocol):
    one, two = (_side(record, protocol) for record in (a, b))
    return {
        "instance_id": a["instance_id"],
        "image_path": a["image_path"],
        "image_label": a["image_label"],
        "question_type": a["question_type"],
        "question": a["questions"][-1] if a["question_type"] == "whole_to_part" else a["questions"][0],
        "correct_answer": a["choices"][a["correct"]],
        "parts": a["gt_parts"],
        "protocol": protocol,
        "a": one,
        "b": two,
        "difference": None if one["iou"] is None or two["iou"] is None else two["iou"] - one["iou"],
    }


def _side(record, protocol):
    block = record.get(protocol) or {}
    key = CHOICES.get(protocol, CHOICES["end_to_end"])[0]
    choice = record.get(key)
    chosen = "" if choice is None else record["choices"][choice]
    ious = block.get("pair_ious") or dict(zip(record["gt_parts"], (block.get("ious") or {}).get("paired") or (), strict=False))
    return {
        "instance_id": record["instance_id"],
        "answer": block.get("answer") or chosen,
        "right": None if answered(record, key) is None else choice == record["correct"],
        "iou": block.get("gmiou" if protocol == "published" else "gmiou_strict"),
        "part_ious": ious,
    }
