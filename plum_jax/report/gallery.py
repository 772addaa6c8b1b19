"""A page of samples of a data set: pictures with their masks, questions and answers. One HTML file without a script."""

import collections
import dataclasses
from pathlib import Path

import jinja2
from markupsafe import Markup

from data_pipelines.images import load_image
from plum_jax.errors import UserError
from plum_jax.report.cards import Choice, Overlay, Phrase, common_lead
from plum_jax.report.pictures import COLOURS, jpeg_uri, mask_uri, pin

HERE = Path(__file__).parent
MOST_FILTERS = 60  # of a group: each is a rule of the style sheet


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters [start, end) of the answer and the mask that they own: a function without arguments -> bool[H, W], or None."""

    start: int
    end: int
    mask: object = None


@dataclasses.dataclass(frozen=True)
class Item:
    """One sample. `marks`: [(name, mask as of Span)] that the answer does not mention. `tags`: {group: names} to filter by."""

    where: str
    image: object  # path or StoredImage
    question: str = ""
    answer: str = ""
    spans: tuple[Span, ...] = ()
    marks: tuple = ()
    marks_title: str = ""
    choices: tuple = ()  # (text, correct)
    tags: dict = dataclasses.field(default_factory=dict)


def write(out, title, facts, items, report=None):
    """Writes the page to the file `out`. `facts`: short texts below the title. `report`: of `plum data check`, whose faults are
    listed on it. Items whose image or masks cannot be read are shown with the reason."""
    from plum_jax.run_record import write_text

    filters, names = _filters(items)
    cards = [_card(item, names) for item in items]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("gallery.html").render(
        title=title, facts=facts, cards=cards, filters=filters, report=report,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
    )  # fmt: skip
    write_text(out, text.encode("utf-8", "replace").decode("utf-8"))  # a JSON file may hold halves of surrogate pairs


def _filters(items):
    """-> ([(group, [(id, name, cards)])], {(group, name): id}); the most frequent names where there are many."""
    counts = collections.defaultdict(collections.Counter)
    for item in items:
        for group, names in item.tags.items():
            counts[group].update(set(names))
    filters, ids = [], {}
    for group, counter in counts.items():
        kept = sorted(name for name, _ in sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_FILTERS])
        for name in kept:
            ids[group, name] = f"f{len(ids) + 1}"
        filters.append((group, [(ids[group, name], name, counter[name]) for name in kept]))
    return filters, ids


def _card(item, names):
    picture, size, problem = "", None, ""
    try:
        picture, size = jpeg_uri(load_image(item.image))
    except UserError as error:
        problem = str(error)
    phrases, marks, at, number = [], [], 0, 0
    for span in sorted(item.spans, key=lambda span: span.start):
        if span.start < at or span.end > len(item.answer):
            continue
        number += 1
        phrases += [
            Phrase(item.answer[at : span.start], 0),
            _phrase(item.answer[span.start : span.end], number, span.mask, size),
        ]
        at = span.end
    phrases.append(Phrase(item.answer[at:], 0))
    for name, mask in item.marks:
        number += 1
        marks.append(_phrase(name, number, mask, size))
    texts = [text for text, _ in item.choices]
    lead = common_lead(texts) if texts else ""
    choices = [Choice(text[len(lead) :].removesuffix("."), None, 0.0, False, correct) for text, correct in item.choices]
    classes = [
        names[group, name] for group, found in item.tags.items() for name in dict.fromkeys(found) if (group, name) in names
    ]
    return {
        "item": item, "picture": picture, "problem": problem, "phrases": [p for p in phrases if p.text], "marks": marks,
        "lead": lead, "choices": choices, "classes": " ".join(classes),
    }  # fmt: skip


def _phrase(text, number, mask, size):
    """A name with its mask; what is wrong with the mask as its note."""
    colour, note, overlay = COLOURS[(number - 1) % len(COLOURS)], "", None
    if mask is None:
        note = "no mask"
    elif size is not None:
        try:
            pixels = mask()
        except (UserError, ValueError) as error:
            return Phrase(text, number, colour, note=str(error))
        if pixels.any():
            overlay = Overlay(mask_uri(pixels, size, colour), *pin(pixels))
        else:
            note = "empty mask"
    return Phrase(text, number, colour, target=overlay, note=note)
