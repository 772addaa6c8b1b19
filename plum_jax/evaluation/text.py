"""Text metrics of multiple choice: accuracy, precision and recall of part names, the random baseline (D 5.3, D 5.4)."""

import numpy as np

RANDOM_SEED = 42  # of the reference's baseline (D 5.4)


def choose(scores, *, tie="first", correct=None):
    """Index of the lowest score.

    Args:
      scores: one number per choice, lower is better; NaN never wins.
      tie: "first" takes the first of equal scores, as published. "wrong" takes an incorrect one, so that a model that
        gives every choice the same score is not rewarded for where the correct one stands (D 5.1); it needs `correct`.
      correct: index of the correct choice.
    """
    scores = np.where(np.isnan(np.asarray(scores, np.float64)), np.inf, scores)
    best = np.flatnonzero(scores == scores.min())
    if tie == "wrong" and len(best) > 1:
        best = best[best != correct]
    return int(best[0])


def accuracy(pairs):
    """[(predicted, correct)] -> {"accuracy", "correct", "total"}; zeros when empty (D 5.3)."""
    correct, total = sum(int(p == t) for p, t in pairs), len(pairs)
    return {"accuracy": correct / total if total else 0.0, "correct": correct, "total": total}


def part_matches(predicted, reference):
    """How many predicted part names are among the references, after stripping and lower-casing (exact matching of D 5.4)."""
    wanted = {normalise(name) for name in reference}
    return sum(normalise(name) in wanted for name in predicted)


def normalise(name):
    """The form in which part names are compared."""
    return name.strip().lower()


def precision_recall_f1(matches, predicted, reference):
    """Counts -> {"precision", "recall", "f1"}; 0 where undefined."""
    precision = matches / predicted if predicted else 0.0
    recall = matches / reference if reference else 0.0
    f1 = 2 * precision * recall / (precision + recall) if matches else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def part_text(pairs):
    """Micro-averaged over the run: [(predicted names, reference names)] -> {"precision", "recall", "f1"} (D 5.4)."""
    matches = sum(part_matches(p, r) for p, r in pairs)
    return precision_recall_f1(matches, sum(len(p) for p, _ in pairs), sum(len(r) for _, r in pairs))


def random_part_text(choices, references, seed=RANDOM_SEED):
    """`part_text` of uniformly drawn choices.

    Args:
      choices: per question, the part names of each choice. references: per question, those of the correct one.
    """
    rng = np.random.default_rng(seed)
    return part_text([(parts[rng.integers(len(parts))], r) for parts, r in zip(choices, references, strict=True)])
