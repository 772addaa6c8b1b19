"""One question as a card: two pictures, the answer cut into phrases with their masks, the choices with their scores."""

import os
import re
from dataclasses import dataclass

from data_pipelines.images import boxed, load_image
from data_pipelines.masks import decode_segmentation
from plum_jax.errors import UserError
from plum_jax.report.pictures import COLOURS, jpeg_uri, mask_uri, pin


@dataclass(frozen=True)
class Overlay:
    """A mask over one of the two pictures. `left`, `top`: percent, where its number stands."""

    uri: str
    left: float
    top: float


@dataclass(frozen=True)
class Phrase:
    text: str
    number: int  # 0: plain text between phrases
    colour: str = ""
    predicted: Overlay | None = None
    target: Overlay | None = None
    iou: float | None = None
    score: float | None = None
    note: str = ""  # what is wrong with it, in words


@dataclass(frozen=True)
class Choice:
    text: str
    loss: float | None
    share: float  # of the bar, 0 to 1, the best choice has 1
    chosen: bool
    correct: bool


@dataclass(frozen=True)
class Card:
    instance: object
    picture: str  # data URI, "" when the image cannot be read
    problem: str  # why it cannot be read
    phrases: list[Phrase]
    apart: list[Phrase]  # drawn, without a place in the answer
    missed: list[Phrase]  # target parts that the answer does not name
    choices: list[Choice]
    object_lead: str  # the words that all choices of the object begin with
    object_choices: list[Choice]
    label: str = ""  # whose answer it is, where several models answer the same question


def make_card(instance, root, score_key, label=""):
    """Instance -> Card. `root`: folder of the data; `score_key`: the scores that chose the answer; `label`: of the model."""
    picture, size, problem = "", None, ""
    try:
        picture, size = jpeg_uri(load_image(boxed(_inside(root, instance.image_path), instance.highlight_box)))
    except UserError as error:
        problem = str(error)
    phrases, apart, missed = _phrases(instance, size)
    _, choices = _choices(instance.choices, instance.scores.get(score_key), instance.predicted, instance.correct)
    object_lead, objects = "", []
    if instance.object_choices:
        object_lead, objects = _choices(
            instance.object_choices, instance.object_scores.get(score_key), instance.object_predicted, instance.object_correct
        )
    return Card(instance, picture, problem, phrases, apart, missed, choices, object_lead, objects, label)


def _inside(root, image_path):
    """An image path of a results file is not trusted: it may not leave the folder of the data."""
    path = os.path.normpath(image_path)
    if root is None or os.path.isabs(path) or path.startswith(".."):
        raise UserError(f"{image_path}: the image lies outside the data folder; give the folder that was evaluated")
    return os.path.join(root, path)


def _phrases(instance, size):
    """-> (the answer in order as plain and tagged pieces, phrases without a place in it, target parts that none names)."""
    targets = dict(zip(instance.gt_parts, instance.gt_masks, strict=False))
    pieces, apart, at, seen = [], [], 0, set()
    spans = sorted(instance.spans, key=lambda s: (s.start is None, s.start or 0))
    for number, span in enumerate(spans, 1):
        seen.add(span.part or span.phrase)
        if span.start is None or span.start < at or span.end > len(instance.answer):
            apart.append(_phrase(span.phrase, number, span, targets, size))
            continue
        pieces.append(Phrase(instance.answer[at : span.start], 0))
        pieces.append(_phrase(instance.answer[span.start : span.end], number, span, targets, size))
        at = span.end
    pieces.append(Phrase(instance.answer[at:], 0))
    missed = []
    for number, part in enumerate((p for p in instance.gt_parts if p not in seen), len(spans) + 1):
        note = "named, but not tagged" if part in instance.named else ""
        colour = _colour(number)
        missed.append(Phrase(part, number, colour, target=_overlay(targets.get(part), size, colour), iou=0.0, note=note))
    return [p for p in pieces if p.text], apart, missed


def _phrase(text, number, span, targets, size):
    colour = _colour(number)
    drawn = _overlay(span.mask if span.status == "ok" else None, size, colour)
    true = _overlay(targets.get(span.part), size, colour)
    return Phrase(text, number, colour, drawn, true, span.iou, span.score, _note(span, targets))


def _colour(number):
    return COLOURS[(number - 1) % len(COLOURS)]


def _note(span, targets):
    if span.status != "ok":
        return span.status.replace("_", " ")
    if span.part is None:
        return "not a visible part"
    return "" if span.part in targets else "visible, but not asked for"


def _overlay(rle, size, colour):
    """None without a picture, a mask or a foreground pixel."""
    if rle is None or size is None:
        return None
    mask = decode_segmentation(rle).astype(bool)
    return Overlay(mask_uri(mask, size, colour), *pin(mask)) if mask.any() else None


def _choices(texts, losses, chosen, correct):
    """Choices without the words that they all share, each with its loss and a bar from the worst (0) to the best (1)."""
    lead = common_lead(texts)
    if losses:
        spread = (max(losses) - min(losses)) or 1.0
        bars = [(max(losses) - loss) / spread for loss in losses]
    else:
        losses, bars = [None] * len(texts), [0.0] * len(texts)
    rows = zip(texts, losses, bars, strict=True)
    return lead, [
        Choice(text[len(lead) :].removesuffix("."), loss, bar, i == chosen, i == correct)
        for i, (text, loss, bar) in enumerate(rows)
    ]


def common_lead(texts):
    """The longest common beginning of the texts that ends at a word and leaves something of each."""
    lead = os.path.commonprefix([t[:-1] for t in texts])
    return lead[: len(re.match(r"(.*\s)?", lead, re.DOTALL).group())]
