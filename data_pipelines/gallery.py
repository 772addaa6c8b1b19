"""Samples of a data set -> one static HTML page: images with their masks, answers with their parts, an index."""

import collections
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.conversation import answer_spans
from data_pipelines.folders import within
from data_pipelines.images import load_image
from data_pipelines.masks import part_masks
from data_pipelines.partonomy.records import Question
from plum_jax.errors import UserError
from plum_jax.report.cards import Overlay
from plum_jax.report.page import render as render_page
from plum_jax.report.pictures import COLOURS, jpeg_uri, mask_uri, pin

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A question and where it stands."""

    file: str
    split: str
    index: int  # in the file
    question: Question


@dataclass(frozen=True)
class Piece:
    """Words of the correct answer, or a part that it does not name."""

    text: str
    part: str = ""  # "": plain words between the parts
    number: int = 0
    colour: str = ""
    overlay: Overlay | None = None


@dataclass(frozen=True)
class Turn:
    """A question with its choices, [(text, correct)], and the correct one in pieces."""

    question: str
    answer: list[Piece]
    choices: list[tuple[str, bool]]


@dataclass(frozen=True)
class Card:
    """What the page shows of a sample."""

    title: str
    kind: str
    where: str  # file, entry and image
    picture: str  # data URI, "" when the image cannot be read
    turns: list[Turn]
    others: list[Piece]  # what has a mask and is not named by the answer
    problems: list[str]
    box: tuple | None = None  # left, top, width, height of the highlight box, in percent of the square that shows the image


def render(folder, entries, heading, *, follow_links=False):
    """[Entry] -> HTML text of `page`, the same for the same entries. Links out of the folder are followed if they may be."""
    cards = [make_card(folder, entry, follow_links=follow_links) for entry in entries]
    objects = index_of((entry.question.image_label, number) for number, entry in enumerate(entries, 1))
    parts = index_of((part, number) for number, entry in enumerate(entries, 1) for part in _visible(entry.question))
    return page(cards, heading, "question", {"objects": objects, "parts with a mask": parts})


def page(cards, heading, noun, indices):
    """[Card] -> HTML text without scripts or outside addresses. `indices`: {what: [(name, [numbers of cards])]}."""
    content = {"heading": heading, "cards": cards, "noun": noun, "indices": list(indices.items())}
    return render_page("gallery.html", folder=HERE, styles=[HERE / "gallery.css"], **content)


def make_card(folder, entry, *, follow_links=False):
    """Entry -> Card. An image or mask that cannot be read is named in `problems`."""
    question, problems = entry.question, []
    picture, size, masks, box = "", None, {}, None
    try:
        image = load_image(within(folder, question.image_path, follow_links=follow_links))
        picture, size = jpeg_uri(image)
        box = _box(question.highlight_box, image.shape[:2])
    except (UserError, ValueError) as error:  # ValueError: of a name that no path can have
        problems.append(str(error))
    for part in _visible(question) if size else ():
        try:
            masks.update(part_masks({part: question.segmentations[part]}, image.shape[:2]))
        except ValueError as error:
            problems.append(f"{part}: {error}")
    colours = {part: (number, COLOURS[(number - 1) % len(COLOURS)]) for number, part in enumerate(_order(question), 1)}

    def piece(text, part):
        number, colour = colours[part]
        return Piece(text, part, number, colour, overlay(masks.get(part), size, colour))

    try:
        spans = answer_spans(question.answer_choices[question.correct], question.correct_parts)
    except ValueError as error:
        spans = []
        problems.append(str(error))
    named = question.correct_parts if spans else ()
    turns = [_part_turn(question, spans, piece)]
    if question.object_question:
        turns.insert(0 if question.question_type == "whole_to_part" else 1, _object_turn(question))
    others = [piece(part, part) for part in colours if part not in named]
    where = f"{entry.file}, entry {entry.index} · {question.image_path}"
    kind = f"{question.question_type.replace('_', ' ')}, {entry.split}"
    return Card(question.image_label, kind, where, picture, turns, others, problems, box)


def _visible(question):
    return sorted(part for part, masks in question.segmentations.items() if masks)


def _order(question):
    """Parts of the correct answer as it lists them, then the others that have a mask."""
    return list(dict.fromkeys([*question.correct_parts, *_visible(question)]))


def _part_turn(question, spans, piece):
    answer, at, pieces = question.answer_choices[question.correct], 0, []
    for (start, end), part in zip(spans, question.correct_parts if spans else (), strict=True):
        pieces += [Piece(answer[at:start]), piece(answer[start:end], part)]
        at = end
    pieces.append(Piece(answer[at:]))
    return Turn(question.question, pieces, _choices(question.answer_choices, question.correct))


def _object_turn(question):
    choices = _choices(question.object_answer_choices, question.object_correct)
    return Turn(question.object_question, [Piece(question.object_answer_choices[question.object_correct])], choices)


def _choices(texts, correct):
    return [(text, number == correct) for number, text in enumerate(texts)]


def overlay(mask, size, colour):
    """None without a mask or a pixel in it."""
    if mask is None or not mask.any():
        return None
    return Overlay(mask_uri(mask > 0, size, colour), *pin(mask))


def _box(box, hw):
    """Pixels x0, y0, x1, y1 -> percent left, top, width, height of the square around the image; None without a box."""
    if box is None:
        return None
    side, (height, width) = max(hw), hw
    left, top = box[0] + (side - width) / 2, box[1] + (side - height) / 2
    return tuple(round(100 * value / side, 2) for value in (left, top, box[2] - box[0], box[3] - box[1]))


def index_of(pairs):
    """(name, number of the card) -> [(name, [numbers])], sorted by name."""
    found = collections.defaultdict(list)
    for name, number in pairs:
        found[name].append(number)
    return sorted(found.items())
