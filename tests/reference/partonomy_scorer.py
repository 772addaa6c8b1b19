"""The published evaluator, written down from D 5.2 to D 5.4 in plain loops over pixels, images and names. Only for tests.

Where the text leaves a choice: a pair that the policy skips (NaN) is left out of every mean, an image without a pair that
counts is left out of the macro mean, and of equal IoUs greedy takes the one with the lowest prediction, then target. The
random baseline draws one choice for each instance in file order.
"""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

POLICY = {"one": 1.0, "zero": 0.0, "skip": math.nan}


def iou(a, b, policy):
    both = either = 0
    for row_a, row_b in zip(a, b, strict=True):
        for x, y in zip(row_a, row_b, strict=True):
            both += bool(x) and bool(y)
            either += bool(x) or bool(y)
    return both / either if either else POLICY[policy]


def paired(p, t, policy):
    return [iou(p[i], t[i], policy) for i in range(min(len(p), len(t)))]


def greedy(p, t, policy):
    left = {(i, j): iou(a, b, policy) for i, a in enumerate(p) for j, b in enumerate(t)}
    found = []
    while left:
        best, value = None, None
        for pair in sorted(left):
            comparable = -1.0 if math.isnan(left[pair]) else left[pair]
            if best is None or comparable > value:
                best, value = pair, comparable
        found.append(left[best])
        left = {pair: x for pair, x in left.items() if pair[0] != best[0] and pair[1] != best[1]}
    return found


def hungarian(p, t, policy):
    if not p or not t:
        return []
    values = [[iou(a, b, policy) for b in t] for a in p]
    gain = [[-1.0 if math.isnan(x) else x for x in row] for row in values]
    rows, columns = linear_sum_assignment(np.array(gain), maximize=True)
    return [values[i][j] for i, j in zip(rows, columns, strict=True)]


def union(p, t, policy):
    if not p or not t:
        return []
    return [iou(any_of(p), any_of(t), policy)]


def any_of(masks):
    height, width = len(masks[0]), len(masks[0][0])
    return [[any(mask[y][x] for mask in masks) for x in range(width)] for y in range(height)]


STRATEGIES = {"paired": paired, "greedy": greedy, "hungarian": hungarian, "union": union}


def mean(values):
    values = [x for x in values if not math.isnan(x)]
    return sum(values) / len(values) if values else math.nan


def masks(instances, policy):
    """[(predicted masks, target masks)] -> {"mask_macro", "mask_micro"} of D 5.2; None where there is nothing to average."""
    macro, micro = {}, {}
    for name, strategy in STRATEGIES.items():
        pairs = [strategy(p, t, policy) for p, t in instances]
        images, every = mean([mean(values) for values in pairs]), mean([x for values in pairs for x in values])
        macro[f"gmIoU-{name}"] = None if math.isnan(images) else images
        micro[f"gmIoU-{name}"] = None if math.isnan(every) else every
    return {"mask_macro": macro, "mask_micro": micro}


def multiple_choice(chosen, correct):
    """D 5.3."""
    total = right = 0
    for a, b in zip(chosen, correct, strict=True):
        total += 1
        right += a == b
    return {"accuracy": right / total if total else 0.0, "correct": right, "total": total}


def lowest(scores):
    """D 5.1: the first index of the lowest score."""
    best = 0
    for i, score in enumerate(scores):
        if score < scores[best]:
            best = i
    return best


def part_text(pairs):
    """D 5.4, exact: [(names of the chosen answer, names of the correct one)]."""
    matches = predicted = references = 0
    for said, wanted in pairs:
        wanted = [name.strip().lower() for name in wanted]
        for name in said:
            matches += name.strip().lower() in wanted
        predicted += len(said)
        references += len(wanted)
    p = matches / predicted if predicted else 0.0
    r = matches / references if references else 0.0
    return {"precision": p, "recall": r, "f1": 2 * p * r / (p + r) if p + r else 0.0}


def random_part_text(choices, references):
    rng = np.random.default_rng(42)
    return part_text([(parts[rng.integers(len(parts))], wanted) for parts, wanted in zip(choices, references, strict=True)])
