"""What came out of running a model on one question (`Outcome`) -> its `Prediction`: the end of the running stage."""

import dataclasses

import numpy as np

from plum_jax import coco
from plum_jax.evaluation.prediction import GT_SPANS, OWN, Answer, Prediction, Span


@dataclasses.dataclass
class SpanSet:
    """Spans of one answer with the masks that the model gives them."""

    ranges: list  # token ranges in the row
    embeds: np.ndarray  # float32[n, W]
    confidence: list  # of the tags, 1 for constructed spans
    low_res: np.ndarray | None = None  # float32[n, 4g, 4g]


@dataclasses.dataclass
class Outcome:
    """What the model did with one question."""

    index: int  # of the question in its file
    question: object  # records.Question
    image: int  # index into `images`
    images: object  # EncodedImages of the chunk
    part: object  # runner.Group
    object: object  # runner.Group or None
    scores: dict = dataclasses.field(default_factory=dict)  # kind -> {measure: [NLL per choice]}
    predicted: dict = dataclasses.field(default_factory=dict)  # kind -> choice
    predicted_published: dict = dataclasses.field(default_factory=dict)
    truth: SpanSet | None = None  # constructed spans of the correct answer
    own: SpanSet | None = None  # the model's spans of the chosen answer
    counts: dict | None = None  # of own spans against the constructed ones of the chosen answer
    bio: np.ndarray | None = None


def prediction_of(model, outcome):
    """inference.Model, Outcome with masks -> Prediction."""
    correct, chosen = (outcome.part.rows[i] for i in (outcome.part.correct, outcome.predicted["part"]))
    truth = decode(model, outcome, outcome.truth.low_res)
    own = truth if outcome.own.low_res is outcome.truth.low_res else decode(model, outcome, outcome.own.low_res)
    bio = tuple(tuple(int(n) for n in pair) for pair in outcome.bio)
    return Prediction(
        index=outcome.index,
        image_path=outcome.question.image_path,
        question_type=outcome.question.question_type,
        choice_scores=outcome.scores,
        answers={
            GT_SPANS: Answer(correct.answer, spans_of(model, correct, outcome.truth, truth), correct.choice.index),
            OWN: Answer(chosen.answer, spans_of(model, chosen, outcome.own, own), chosen.choice.index, outcome.counts, bio),
        },
    )


def decode(model, outcome, low_res):
    """[(mask bool[H, W], foreground probability in it, RLE)] of the masks of a span set."""
    found = [model.mask(logits, 1.0, outcome.images, outcome.image) for logits in low_res]
    return [(mask, inside, coco.encode(mask)) for mask, inside in found]


def spans_of(model, row, span_set, found):
    """Tuple of Span for a span set of an answer and what `decode` found. A span that stands where the answer's renderer put a
    part names that part, whatever word the answer has for it (D28)."""
    constructed = dict(zip(row.targets, row.choice.parts, strict=True))
    spans = []
    for place, sure, (mask, inside, rle) in zip(span_set.ranges, span_set.confidence, found, strict=True):
        a, b = row.characters(*place)
        score, status = model.judge(mask, inside * sure)
        spans.append(
            Span(row.answer[a:b], rle, (a, b), constructed.get(place), round(score, 6), round(inside * sure, 6), status)
        )
    return tuple(spans)
