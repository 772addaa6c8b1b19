"""The masks of one answer against the target masks of the parts that were asked for (D 5.2), on run lengths."""

import numpy as np

from data_pipelines.conversation import answer_spans
from plum_jax.evaluation import boundary, mask_relations, masks, run_lengths
from plum_jax.evaluation.headline import floats
from plum_jax.evaluation.part_names import by_rules, distinct_matches, exact
from plum_jax.evaluation.text import normalise

STRICT = "paired_strict"


def published(answer, parts, targets, empty_union):
    """The correct answer with given spans: masks paired with the parts by position.

    Args:
      answer: prediction.Answer. parts: of the correct answer, in its order. targets: targets.Targets.

    Returns:
      The `published` block of a record.
    """
    found, target = [span.mask for span in answer.spans], [targets.masks[part] for part in parts]
    names = [span.part or (parts[k] if k < len(parts) else None) for k, span in enumerate(answer.spans)]
    matrix, both = _compare(found, target, empty_union)
    ious, empty = _strategies(found, target, matrix, both, empty_union)
    first = {name: k for k, name in reversed(list(enumerate(names))) if name in parts}
    strict, empty[STRICT] = _strict(first, parts, matrix, both)
    rims = _rim_ious(list(zip(found, target, strict=False)), empty_union)
    entries = [
        {"phrase": span.phrase, "char": _list(span.char), "mask": span.mask, "part": name,
         "iou": number(ious["paired"][k]) if k < len(target) else None}
        for k, (span, name) in enumerate(zip(answer.spans, names, strict=True))
    ]  # fmt: skip
    return {
        "spans": entries,
        "gmiou": masks.macro([ious["paired"]]),
        "ious": {name: numbers(values) for name, values in ious.items()},
        "pair_ious": strict,
        "boundary_ious": rims,
        "empty_pairs": empty,
        **_relations(found, targets),
    }


def named(answer, question, targets, lookup, empty_union, *, rules=False):
    """An answer with the model's own spans: masks matched to the parts by what their phrases name; a missing mask scores 0.

    Of several masks of a part the first in the text counts. Only masks of status "ok" are given.

    Args:
      answer: prediction.Answer. question: records.Question. targets: targets.Targets. lookup: PartLookup of its parts.
      rules: phrases are compared with part names by rules (free text), not exactly.

    Returns:
      The `middle`, `end_to_end` or `generation` block of a record.
    """
    parts, listed = list(question.correct_parts), _listed(answer, question)
    place = {part: k for k, part in enumerate(targets.masks)}
    matrix, both = _compare([span.mask for span in answer.spans], list(targets.masks.values()), empty_union)
    entries, first, given, extra = [], {}, [], 0
    for k, span in enumerate(answer.spans):
        part = _part_of(span, listed, lookup, rules)
        entry = {"phrase": span.phrase, "char": _list(span.char), "mask": span.mask, "score": span.score, "raw": span.raw}
        iou = None if part is None else number(matrix[k, place[part]])
        entries.append({**entry, "status": span.status, "part": part, "iou": iou})
        if span.status == "ok":
            extra += part is not None and (part in first or part not in parts)
            if part is not None:
                first.setdefault(part, len(given))
            given.append(k)
    wanted, shown = np.ix_(given, [place[part] for part in parts]), [answer.spans[k].mask for k in given]
    matrix, both, target = matrix[wanted], both[wanted], [targets.masks[part] for part in parts]
    ious, empty = _strategies(shown, target, matrix, both, empty_union)
    strict, empty[STRICT] = _strict(first, parts, matrix, both)
    paired = [part for part in parts if part in first]
    rims = dict(zip(paired, _rim_ious([(shown[first[p]], targets.masks[p]) for p in paired], empty_union), strict=True))
    return {
        "answer": answer.text,
        "choice": answer.choice,
        "status": "no_span_tagged" if not entries else "ok" if given else entries[0]["status"],
        "spans": entries,
        "gmiou_strict": masks.macro([floats(strict.values())]),
        "pair_ious": strict,
        "boundary_pair_ious": {part: rims.get(part, 0.0) for part in parts},
        "ious": {name: numbers(values) for name, values in ious.items()},
        "empty_pairs": empty,
        "span_counts": answer.span_counts,
        "bio_counts": None if answer.bio_counts is None else [list(pair) for pair in answer.bio_counts],
        "false_masks": sum(entry["part"] is None for entry in entries if entry["status"] == "ok"),
        "extra_masks": extra,
        "masks": len(given),
        **_absent(answer, question, entries, lookup),
        **_relations(shown, targets),
    }


def named_parts(block, parts, synonyms=None):
    """Parts that free text names, its phrases, against the parts of the correct answer, each once.

    Returns:
      {"exact", "rules": [matches, named, references]}.
    """
    said = [entry["phrase"] for entry in block["spans"] if entry["phrase"].strip()]
    keys = {"exact": exact, "rules": lambda name: by_rules(name, synonyms)}
    return {name: list(distinct_matches(said, parts, key)) for name, key in keys.items()}


def _listed(answer, question):
    """{word of a choice's list of parts: the part it stands for}: answers may use another word than the annotation (D28)."""
    if answer.choice is None:
        return {}
    parts = question.answer_parts[answer.choice]
    try:
        places = answer_spans(answer.text, parts)
    except ValueError:  # a text of the model's own, not that of the choice
        return {}
    return {normalise(answer.text[a:b]): part for (a, b), part in zip(places, parts, strict=True)}


def _part_of(span, listed, lookup, rules):
    """The visible part that a span names, or None."""
    for name in (span.part, listed.get(normalise(span.phrase)), span.phrase):
        found = lookup(name, rules=rules) if name else None
        if found is not None:
            return found
    return None


def _absent(answer, question, entries, lookup):
    """Parts that the answer names and the object does not show, and how many of them got a mask all the same."""
    with_mask = {normalise(entry["phrase"]) for entry in entries if entry["status"] == "ok" and entry["part"] is None}
    absent = {normalise(entry["phrase"]) for entry in entries if entry["part"] is None and entry["phrase"].strip()}
    if answer.choice is not None:
        listed = _listed(answer, question)
        absent = {word for word, part in listed.items() if lookup(part, rules=False) is None}
    return {"absent_parts": len(absent), "absent_parts_with_mask": len(absent & with_mask)}


def _compare(found, target, empty_union):
    """-> (IoU float64[n, m], bool[n, m] whether both masks are empty)."""
    both = (run_lengths.areas(found) == 0)[:, None] & (run_lengths.areas(target) == 0)[None]
    return run_lengths.iou_matrix(found, target, empty_union=empty_union), both


def _strategies(found, target, matrix, both, empty_union):
    """-> ({strategy: IoUs of its pairs float64}, {strategy: how many of them are of two empty masks})."""
    ious, empty = {}, {}
    for name in masks.STRATEGIES[:3]:
        pairs = masks.pair_indices(matrix, name)
        ious[name], empty[name] = matrix[pairs], int(both[pairs].sum())
    ious["union"], empty["union"] = np.zeros(0), 0
    if found and target:
        one, nothing = _compare([run_lengths.union(found)], [run_lengths.union(target)], empty_union)
        ious["union"], empty["union"] = one[0], int(nothing.sum())
    return ious, empty


def _strict(first, parts, matrix, both):
    """first: {part: row of its mask} -> ({part: IoU, 0 without a mask, None where skipped}, pairs of two empty masks)."""
    ious = {part: number(matrix[first[part], j]) if part in first else 0.0 for j, part in enumerate(parts)}
    return ious, sum(int(both[first[part], j]) for j, part in enumerate(parts) if part in first)


def _rim_ious(pairs, empty_union):
    """Boundary IoU of each pair of masks, None where skipped."""
    if not pairs:
        return []
    found, target = ([boundary.rim_of(mask) for mask in side] for side in zip(*pairs, strict=True))
    return numbers(np.diagonal(run_lengths.iou_matrix(found, target, empty_union=empty_union)))


def _relations(found, targets):
    return {
        "inside_object": numbers(mask_relations.inside_object(found, targets.region)),
        "overlap": numbers(mask_relations.sibling_overlap(found)),
    }


def number(value):
    """float, or None for NaN (a pair of empty masks under empty_union=skip): JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def numbers(values):
    return [number(value) for value in values]


def _list(values):
    return None if values is None else list(values)
