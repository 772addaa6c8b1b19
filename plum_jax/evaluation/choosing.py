"""Choice scores -> chosen answers, also of the second of two questions, which depends on the answer to the first (D 5.1)."""

import numpy as np

from data_pipelines.partonomy.records import TWO_TURN
from plum_jax.evaluation.text import accuracy, choose

MEASURES = ("answer_mean", "answer_sum", "full_mean")
PUBLISHED_MEASURE = "full_mean"
PUBLISHED = PUBLISHED_MEASURE, "first"  # measure and rule for ties of the published protocol
ORDER = {"part_to_whole": ("part", "object"), "whole_to_part": ("object", "part")}
KINDS = ("part", "object")
NO_ANSWER = -1  # in pairs of predicted and correct choice: equal to no choice


def second_of(question_type):
    """What the second of two questions asks for, "part" or "object"; None where there is one question."""
    return ORDER[question_type][1] if question_type in TWO_TURN else None


def chosen(scores, measure, tie, correct):
    """Choice by one measure: an index, or None when the model gives no scores of it.

    Args:
      scores: {measure: [one number or None a choice, lower is better]}, or None.
    """
    values = (scores or {}).get(measure)
    return None if values is None else choose(np.array(values, np.float64), tie=tie, correct=correct)


def choices_of(question, prediction, measure, tie, *, end_to_end=False, own=None):
    """What a protocol says that the model chose: {"part", "object": index or None}.

    A choice is found by the measure; where the model gives no scores of it, it is the choice that the prediction states.

    Args:
      end_to_end: the second of two questions was asked after the model's first answer, where it has scores of that, and not
        after the correct one.
      own: the answer whose spans are scored end to end; its choice is the chosen part answer.
    """
    correct = {"part": question.correct, "object": question.object_correct}
    second, found = second_of(question.question_type), {}
    for kind in KINDS:
        scores = prediction.choice_scores.get(kind)
        if end_to_end and kind == second:
            scores = prediction.choice_scores.get("second_after_predicted", scores)
        stated = prediction.predicted.get(kind)
        found[kind] = None if correct[kind] is None else chosen(scores, measure, tie, correct[kind])
        found[kind] = stated if found[kind] is None else found[kind]
    if own is not None and own.choice is not None:
        found["part"] = own.choice
    return found


def answered(record, key):
    """The choice that a record counts under `key` ("predicted", "object_predicted_published", ...).

    None where the model gives no choices of that kind: the question does not count. NO_ANSWER where it does, but not for this
    question (`unanswered` of the record): that is a wrong answer.
    """
    kind = "object" if key.startswith("object") else "part"
    missing = record[key] is None and kind in record.get("unanswered", ())
    return NO_ANSWER if missing else record[key]


def named_parts(record, key):
    """Parts of the choice that a record counts under `key`; none of no answer, None where there is nothing to count."""
    choice = answered(record, key)
    return None if choice is None else [] if choice == NO_ANSWER else record["choice_parts"][choice]


def by_measure(records, tie):
    """Accuracy by each of the measures side by side, of records of instances.jsonl.

    Returns:
      {"part": {measure: accuracy group}, "object": the same}, without measures that no record has.
    """
    result = {}
    for kind, scores, correct in (("part", "scores", "correct"), ("object", "object_scores", "object_correct")):
        asked = [(r[scores], r[correct]) for r in records if r.get(scores)]
        found = {m: [(chosen(s, m, tie, c), c) for s, c in asked if s.get(m) is not None] for m in MEASURES}
        result[kind] = {m: accuracy(pairs) for m, pairs in found.items() if pairs}
    return result


def two_questions(records, measure, tie):
    """The second of two questions after the correct and after the predicted first answer; None for types that ask one.

    Returns:
      {"second": "part" or "object", "after_correct_first", "after_predicted_first", "both_correct": accuracy groups}. The last
      two are None when the model has no scores after its own first answer. `both_correct` counts the questions of which the
      first answer and the second after it are right.
    """
    second = second_of(records[0]["question_type"]) if records else None
    if second is None:
        return None
    names = {"part": ("scores", "correct"), "object": ("object_scores", "object_correct")}
    (first_scores, first_correct), (second_scores, second_correct) = (names[k] for k in ORDER[records[0]["question_type"]])
    pick = lambda r, scores, correct: chosen(r.get(scores), measure, tie, r[correct])  # noqa: E731
    after_correct, after_predicted, both = [], [], []
    for r in records:
        given, own = pick(r, second_scores, second_correct), pick(r, "second_scores", second_correct)
        after_correct += [(given, r[second_correct])] if given is not None else []
        if own is not None:
            after_predicted.append((own, r[second_correct]))
            both.append((pick(r, first_scores, first_correct) == r[first_correct] and own == r[second_correct], True))
    return {
        "second": second,
        "after_correct_first": accuracy(after_correct),
        "after_predicted_first": accuracy(after_predicted) if after_predicted else None,
        "both_correct": accuracy(both) if both else None,
    }
