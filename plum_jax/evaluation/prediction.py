"""What a model did with one question: the line of predictions.jsonl, between running a model and scoring it.

Nothing here knows the right answer and nothing needs a model: `plum evaluate` writes these lines, `plum score` reads them from
any model. What they mean is in docs/predictions.md.
"""

import dataclasses

# How an answer and its spans came about, in the order in which less and less is given (D 5.1, D 7.4). The first is the
# published protocol, the third the one of use; the last has neither choices nor an answer to start from.
GT_SPANS, GT_ANSWER, OWN, GENERATED = "gt_answer_gt_spans", "gt_answer_pred_spans", "pred_answer_pred_spans", "generated"
MODES = (GT_SPANS, GT_ANSWER, OWN, GENERATED)
STATUSES = ("ok", "no_span_tagged", "empty_mask", "low_confidence")


@dataclasses.dataclass(frozen=True)
class Span:
    """A phrase of an answer and its mask."""

    phrase: str
    mask: dict  # COCO run lengths {"size": [H, W], "counts": str} at the size of the upright image
    char: tuple | None = None  # (start, end) in the answer's text; None where the model does not say
    part: str | None = None  # the part that the phrase is known to name by construction; None: the phrase is looked up
    score: float | None = None  # expected IoU of the mask, in [0, 1]
    raw: float | None = None  # the confidence before calibration
    status: str = "ok"  # of STATUSES; only masks that are "ok" count as given


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer with its spans."""

    text: str
    spans: tuple  # of Span, in text order
    choice: int | None = None  # index of the answer choice that it is; None: free text
    span_counts: dict | None = None  # {"matched", "predicted", "target"} of exact span boundaries, where spans were tagged
    bio_counts: tuple | None = None  # int[3][2]: (correct, total) for O, B, I over the answer's tokens


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Everything that a model did with one question.

    `choice_scores` maps a question to {measure: [one number a choice, lower is better]}; the questions are "part" and
    "object" (each after the correct first answer where there are two) and "second_after_predicted", the second of two
    questions after the first answer that the model chose.
    """

    index: int  # of the question in its file
    image_path: str
    question_type: str
    choice_scores: dict
    answers: dict  # mode of MODES -> Answer
    predicted: dict = dataclasses.field(default_factory=dict)  # question -> choice, where only that is known
    skipped: str | None = None  # why there is no answer; then the rest is empty
