"""What a prediction file of the published code says of itself, beside what its predictions score (D 5.9)."""

import math

from plum_jax.evaluation import partonomy_results

TOLERANCE = 1e-6
GROUPS = ("mask_macro", "mask_micro", "part_text", "random_part_text", "mc_part_text", "mc_object_text")


def check_claim(claim, records):
    """Compares the `metrics` of a file with the published protocol over the questions of the file, in its order.

    Args:
      claim: collect.Claim. records: {index: record of instances.jsonl}.

    Returns:
      {"path", "question_types", "predictions", "compared": numbers compared, "differences": [{"group", "key", "file",
      "scored"}], "other_targets": predictions whose target masks in the file are not those of the question file}. A metric
      that only one side has is a difference, with None for the other. Metrics of files with several question types cannot be
      told apart; nothing is compared then.
    """
    mine = [records[index] for index in claim.indices]
    types = sorted({record["question_type"] for record in mine})
    report = {"path": claim.path, "question_types": types, "predictions": len(mine), "compared": 0, "differences": []}
    report["other_targets"] = sum(_other(r, t) for r, t in zip(mine, claim.target_counts, strict=True))
    if len(types) != 1:
        return report
    scored = partonomy_results.published(mine)
    for group in (name for name in GROUPS if isinstance(claim.metrics.get(name), dict)):
        for key, said in claim.metrics[group].items():
            ours = scored[group].get(key)
            report["compared"] += 1
            if not _same(said, ours):
                report["differences"].append({"group": group, "key": key, "file": _number(said), "scored": ours})
    return report


def _same(said, ours):
    said = _number(said)
    if said is None or ours is None:
        return said is None and ours is None
    return abs(said - ours) <= TOLERANCE


def _number(value):
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _other(record, target_counts):
    return target_counts is not None and target_counts != [mask["counts"] for mask in record["gt_masks"]]


def warnings(report):
    """Report of `check_claim` -> sentences for the user, none when all is as the file says."""
    path, found = report["path"], []
    if len(report["question_types"]) != 1:
        found.append(f"{path}: holds several question types, so that its metrics cannot be compared")
    if report["other_targets"]:
        n = report["other_targets"]
        found.append(f"{path}: {n} of {report['predictions']} predictions carry other target masks than the question file")
    for d in report["differences"]:
        group, key, said, ours = d["group"], d["key"], _show(d["file"]), _show(d["scored"])
        reason = ""
        if key == "total":
            reason = "; it counts questions whose predictions it does not hold"
        elif group.startswith("random"):
            reason = "; it depends on the order of questions and choices"
        found.append(f"{path}: says {group} {key} {said}, its predictions give {ours}{reason}")
    return found


def _show(value):
    return "nothing" if value is None else f"{value:.9g}"
