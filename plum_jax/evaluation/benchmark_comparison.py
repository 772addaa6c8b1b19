"""Two evaluations of a benchmark beside PARTONOMY: paired differences with intervals, and the questions that changed most.

Works on records of instances.jsonl (`answered.score`). What comes out has the form of `comparison`, with the tables of the
benchmark in place of the question types.
"""

import collections

from plum_jax.evaluation.comparison import EQUAL, Paired, differences
from plum_jax.evaluation.headline import floats
from plum_jax.evaluation.mask_tables import OPEN, TEACHER_FORCED, by_group

WORDS = ("official", "contains")
PROTOCOLS = (TEACHER_FORCED, OPEN, *WORDS)


def pair(a, b):
    """Two lists of records -> comparison.Paired. Questions are the same by their id."""
    left, right = ({record["id"]: record for record in side} for side in (a, b))
    both = [key for key in left if key in right]
    reasons = {key: left[key].get("skipped") or right[key].get("skipped") for key in both}
    scored = [key for key in both if not reasons[key]]
    same = [key for key in scored if _right(left[key]) == _right(right[key])]
    return Paired(
        [left[key] for key in same],
        [right[key] for key in same],
        len(left) - len(both),
        len(right) - len(both),
        len(scored) - len(same),
        dict(sorted(collections.Counter(reason for reason in reasons.values() if reason).items())),
    )


def _right(record):
    """What a record says of the right answer."""
    return record["image_path"], record["kind"], record.get("has_target"), record.get("references")


def compare(paired):
    """{table: {protocol: {metric: numbers of `comparison.differences`}}}."""
    places = [{**record, "place": i} for i, record in enumerate(paired.a)]
    found = {}
    for name, members in by_group(places).items():
        a, b = ([side[record["place"]] for record in members] for side in (paired.a, paired.b))
        tables = {protocol: _compare(a, b, protocol) for protocol in PROTOCOLS}
        found[name] = {protocol: numbers for protocol, numbers in tables.items() if numbers}
    return found


def _compare(a, b, protocol):
    """Of the questions that both answer under a protocol."""
    both = [(one, two) for one, two in zip(a, b, strict=True) if protocol in one and protocol in two]
    if not both:
        return {}
    ratios = [(_words if protocol in WORDS else _masks)([records[k] for records in both], protocol) for k in (0, 1)]
    return differences([one["image_path"] for one, _ in both], *ratios)


def _words(records, protocol):
    """{metric: (above, below)}, float64[questions] each."""
    ones = [1] * len(records)
    found = {"accuracy": (floats([r[protocol] for r in records]), floats(ones))}
    if protocol == "official" and all("said" in r for r in records):
        yes, right = ([float(word == "yes") for word in words] for words in _said_and_right(records))
        found["yes_ratio"] = floats(yes), floats(ones)
        found["f1"] = floats([2 * y * w for y, w in zip(yes, right, strict=True)]), floats(yes) + floats(right)
    return found


def _said_and_right(records):
    return [r["said"] for r in records], [r["references"][0] for r in records]


def _masks(records, protocol):
    blocks, there = [r[protocol] for r in records], [float(r["has_target"]) for r in records]
    absent, drawn = [1 - t for t in there], [float(block["pixels"] > 0) for block in blocks]
    product = lambda x, y: floats([i * j for i, j in zip(x, y, strict=True)])  # noqa: E731
    return {
        "giou_mean_over_samples": (floats([block["iou"] for block in blocks]), floats([1] * len(blocks))),
        "ciou_cumulative": tuple(floats([block[key] for block in blocks]) for key in ("intersection", "union")),
        "mask_rate_of_targets": (product(drawn, there), floats(there)),
        "false_mask_rate": (product(drawn, absent), floats(absent)),
    }


def cases(paired, most):
    """The questions that changed most, by IoU or score, in the form of `comparison.cases`."""
    found = [_case(a, b) for a, b in zip(paired.a, paired.b, strict=True)]
    changed = [case for case in found if case is not None and abs(case["difference"]) > EQUAL]
    return sorted(changed, key=lambda case: (-abs(case["difference"]), case["instance_id"]))[:most]


def _case(a, b):
    """The first protocol that both have, what the model does by itself before what it does with help."""
    protocol = next((name for name in (OPEN, TEACHER_FORCED, "official") if name in a and name in b), None)
    if protocol is None:
        return None
    one, two = (_side(record, protocol) for record in (a, b))
    return {
        "instance_id": a["id"],
        "image_path": a["image_path"],
        "question_type": a["dataset"],
        "question": a.get("name") or a["id"],
        "protocol": protocol,
        "a": one,
        "b": two,
        "difference": two["score"] - one["score"],
    }


def _side(record, protocol):
    if protocol in WORDS:
        score = float(record[protocol])
        return {"answer": record["answer"], "right": score > 0, "iou": None, "score": score}
    block = record[protocol]
    return {"answer": block["answer"], "right": None, "iou": block["iou"], "score": block["iou"]}
