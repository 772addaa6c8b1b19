"""What came out of running a model on one question (`Outcome`) -> its `Prediction`: the end of the running stage."""

import dataclasses

import numpy as np

from plum_jax import coco
from plum_jax.evaluation.prediction import Answer, Prediction, Span


@dataclasses.dataclass
class Masks:
    """What the spans of an answer are decoded from, and later to; answers whose spans coincide share it."""

    embeds: np.ndarray  # float32[n, W]
    low_res: np.ndarray | None = None  # float32[n, 4g, 4g]

    def __post_init__(self):
        if not len(self.embeds):
            self.low_res = np.zeros((0, 1, 1), np.float32)


@dataclasses.dataclass
class Said:
    """One answer with its spans."""

    text: str
    choice: int | None  # index of the answer choice that it is; None: free text
    ranges: list  # token ranges of the spans in the row
    chars: list  # their character ranges in the text
    parts: list  # the part that each is known to name, or None
    masks: Masks
    confidence: list  # of the tags, 1 for constructed spans
    counts: dict | None = None  # of the spans against the constructed ones
    bio: np.ndarray | None = None  # int[3, 2]


@dataclasses.dataclass
class Outcome:
    """What the model did with one question."""

    index: int  # of the question in its file
    question: object  # records.Question
    groups: dict  # kind -> rows.Group
    place: object  # programs.Place of its image
    images: object  # with the sizes of the images that run together: `resized_hw`, `original_hw` int[B, 2]
    image: int  # index into these
    scores: dict = dataclasses.field(default_factory=dict)  # kind -> {measure: [NLL per choice]}
    predicted: dict = dataclasses.field(default_factory=dict)  # kind -> choice
    own: dict = dataclasses.field(default_factory=dict)  # kind of group -> Said, the choice made there with the model's spans
    answers: dict = dataclasses.field(default_factory=dict)  # mode of prediction.MODES -> Said


def prediction_of(model, outcome):
    """inference.Model, Outcome with masks -> Prediction."""
    decoded, answers = {}, {}
    for mode, said in outcome.answers.items():
        key = id(said.masks)
        if key not in decoded:
            decoded[key] = _masks(model, outcome, said.masks.low_res)
        spans = _spans(model, said, decoded[key])
        bio = None if said.bio is None else tuple(tuple(int(n) for n in pair) for pair in said.bio)
        answers[mode] = Answer(said.text, spans, said.choice, said.counts, bio)
    question = outcome.question
    return Prediction(outcome.index, question.image_path, question.question_type, outcome.scores, answers)


def _masks(model, outcome, low_res):
    """[(mask bool[H, W], foreground probability in it, RLE)] of the spans of one answer."""
    found = [model.mask(logits, 1.0, outcome.images, outcome.image) for logits in low_res]
    return [(mask, inside, coco.encode(mask)) for mask, inside in found]


def _spans(model, said, found):
    """Tuple of prediction.Span."""
    spans = []
    for (a, b), part, sure, (mask, inside, rle) in zip(said.chars, said.parts, said.confidence, found, strict=True):
        score, status = model.judge(mask, inside * sure)
        spans.append(Span(said.text[a:b], rle, (a, b), part, round(score, 6), round(inside * sure, 6), status))
    return tuple(spans)
