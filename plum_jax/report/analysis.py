"""What the report says about the instances of an evaluation: which to show, what was confused, where masks are poor."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from data_pipelines.masks import segmentation_area
from plum_jax.evaluation import calibration
from plum_jax.evaluation.area_bins import BINS, EDGES
from plum_jax.report.lenient import dictionary, number


def pick_samples(instances, count, first):
    """`count` instances, as many of each question type as there are, evenly spaced in file order: never by score.

    The types start at different places, because a file asks all its types about the same images. Type `first` comes first.
    """
    by_type = defaultdict(list)
    for instance in sorted(instances, key=lambda i: i.question_type != first):
        by_type[instance.question_type].append(instance)
    shares = dict.fromkeys(by_type, 0)
    for _ in range(min(count, len(instances))):  # one more for the type that has the fewest cards so far
        shares[min((t for t in by_type if shares[t] < len(by_type[t])), key=lambda t: shares[t])] += 1
    places = [(t, j, (k + 0.5) / len(shares)) for k, (t, share) in enumerate(shares.items()) for j in range(share)]
    return [by_type[t][int((j + phase) / shares[t] * len(by_type[t]))] for t, j, phase in places]


def pick_worst(instances, count):
    """The lowest strict scores, wrong answers first among equals."""
    scored = [i for i in instances if i.gmiou is not None and i.gt_parts]
    return sorted(scored, key=lambda i: (i.gmiou, i.right, i.id))[:count]


@dataclass(frozen=True)
class Confusion:
    """cells[row][column]: questions whose answer left out the row's part and named the column's instead."""

    rows: list[str]
    columns: list[str]
    cells: list[list[int]]
    pairs: list[tuple[str, str, int]]  # most frequent first
    wrong: int  # questions with a wrong part list


NOTHING = "(nothing)"


def confusion(instances, *, size=14, pairs=12):
    """Parts that the chosen answer left out against parts that it named wrongly. Without a partner: `(nothing)`."""
    counts = Counter()
    wrong = 0
    for instance in instances:
        target, named = set(instance.gt_parts), set(instance.named)
        if target == named:
            continue
        wrong += 1
        counts.update((t, n) for t in sorted(target - named) or [NOTHING] for n in sorted(named - target) or [NOTHING])
    rows, columns = _largest(counts, 0, size), _largest(counts, 1, size)
    cells = [[counts[r, c] for c in columns] for r in rows]
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Confusion(rows, columns, cells, [(*pair, n) for pair, n in ordered[:pairs]], wrong)


def _largest(counts, axis, size):
    """The `size` names with the largest totals along an axis, in alphabetical order, `(nothing)` last."""
    totals = Counter()
    for pair, n in counts.items():
        totals[pair[axis]] += n
    return sorted(
        (name for name, _ in sorted(totals.items(), key=lambda i: (-i[1], i[0]))[:size]), key=lambda n: (n == NOTHING, n)
    )


@dataclass(frozen=True)
class AreaBin:
    label: str
    count: int
    iou: float | None  # mean, missing mask = 0
    found: float | None  # share with an IoU of at least one half


def area_bins(evaluation):
    """[AreaBin] of an evaluation: from its questions; without them from results.json, over all types, `found` unknown."""
    if evaluation.instances:
        return by_area(evaluation.instances)
    table = []
    for key, label in zip(BINS, area_labels(), strict=True):
        places = [("end_to_end", kind, "by_area", key) for kind in evaluation.types]
        held = [(evaluation.number(*p, "n_pairs") or 0, evaluation.number(*p, "gmIoU-paired_strict") or 0.0) for p in places]
        n = sum(count for count, _ in held)
        table.append(AreaBin(label, int(n), sum(count * iou for count, iou in held) / n if n else None, None))
    return table


def area_labels():
    labels = [f"under {EDGES[0]:.2%}", *(f"{a:.2%} to {b:.2%}" for a, b in zip(EDGES, EDGES[1:], strict=False))]
    return [re.sub(r"\.?0*%", " %", label) for label in [*labels, f"{EDGES[-1]:.2%} and more"]]


def _share(mask):
    """Share of the image; None without a mask."""
    if mask is None:
        return None
    (height, width), area = segmentation_area(mask)
    return area / (height * width)


def by_area(instances):
    """Strict IoU of every target part, binned by the share of the image that the part covers."""
    shares, ious = [], []
    for instance in instances:
        areas = instance.gt_areas or [_share(mask) for mask in instance.gt_masks]
        for part, share in zip(instance.gt_parts, areas, strict=False):
            if share is None:
                continue
            shares.append(share)
            ious.append(instance.pair_ious.get(part, 0.0))
    bins = np.searchsorted(EDGES, shares, side="right")
    ious = np.asarray(ious)
    table = []
    for i, label in enumerate(area_labels()):
        chosen = ious[bins == i] if len(ious) else ious
        mean, found = (float(chosen.mean()), float((chosen >= 0.5).mean())) if len(chosen) else (None, None)
        table.append(AreaBin(label, len(chosen), mean, found))
    return table


def reliability(evaluation):
    """What the drawn masks claim against what they reach; a mask of nothing visible has IoU 0. See calibration.reliability.

    From the questions of an evaluation; without them from results.json, over all types.
    """
    instances = evaluation.instances
    if not instances:
        return _pooled_reliability([evaluation.group("end_to_end", kind, "mask_scores") for kind in evaluation.types])
    spans = [s for i in instances for s in i.spans if s.score is not None and s.status != "empty_mask"]
    return calibration.reliability([s.score for s in spans], [s.iou or 0.0 for s in spans])


def _pooled_reliability(tables):
    """Tables of several question types -> one, its means weighted by the masks."""
    bins, given = [], [dictionary(table).get("bins") for table in tables]
    for same in zip(*[map(dictionary, table) for table in given if isinstance(table, list)], strict=False):
        held = [[number(b.get(key)) for key in ("low", "high", "n_masks", "score", "iou")] for b in same]
        held = [b for b in held if None not in b]  # the means of an empty bin are None
        n = sum(b[2] for b in held)
        mean = [sum(b[2] * b[k] for b in held) / n if n else None for k in (3, 4)]
        bins.append({"low": same[0].get("low"), "high": same[0].get("high"), "n_masks": n, "score": mean[0], "iou": mean[1]})
    total = sum(b["n_masks"] for b in bins)
    error = sum(abs(b["score"] - b["iou"]) * b["n_masks"] for b in bins if b["n_masks"]) / total if total else None
    return {"bins": bins, "n_masks": total, "expected_calibration_error": error}


def common(evaluations):
    """[(id, [one Instance an evaluation])] of the questions that all evaluations have, in the order of the first.

    A question is the same where its id, type, image and choices agree.
    """
    keyed = [{(i.id, i.question_type, i.image_path, tuple(i.choices)): i for i in e.instances} for e in evaluations]
    shared = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    return [(key[0], [instances[key] for instances in keyed]) for key in shared]


def most_different(groups, count):
    """The questions whose strict scores differ most between the evaluations."""
    scored = [g for g in groups if all(i.gmiou is not None for i in g[1])]
    spread = lambda group: max(i.gmiou for i in group[1]) - min(i.gmiou for i in group[1])  # noqa: E731
    return sorted((g for g in scored if spread(g) > 0), key=lambda g: (-spread(g), g[0]))[:count]


@dataclass(frozen=True)
class PartScore:
    name: str
    targets: int  # questions whose correct answer names it
    iou: float | None
    named: float | None  # share of those whose chosen answer names it
    masks: int  # masks drawn for it
    false_masks: int  # of these, where the part is not visible


def by_part(instances):
    """One row per part name that is a target or has a mask; poorest first, names without a target last."""
    ious, named, drawn, false = defaultdict(list), Counter(), Counter(), Counter()
    for instance in instances:
        said = set(instance.named)
        for part in instance.gt_parts:
            ious[part].append(instance.pair_ious.get(part, 0.0))
            named[part] += part in said
        for span in instance.spans:
            if span.status == "ok" and span.mask is not None:
                drawn[span.phrase] += 1
                false[span.phrase] += span.part is None
    rows = []
    for name in sorted({*ious, *drawn}):
        n = len(ious[name])
        rows.append(
            PartScore(name, n, sum(ious[name]) / n if n else None, named[name] / n if n else None, drawn[name], false[name])
        )
    return sorted(rows, key=lambda r: (r.iou is None, r.iou or 0.0, r.name))
