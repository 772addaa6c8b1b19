"""Conversations about one named thing: a short question, and an answer in which the name stands once and owns a mask."""

import re

from data_pipelines.conversation import END, IMAGE, Span
from data_pipelines.record import Dialogue
from plum_jax.errors import UserError

SLOT = "{name}"


def normalise(name):
    """The one form of a name everywhere: lower case, single spaces, none at the ends."""
    return re.sub(r"\s+", " ", name).strip().lower()


def is_reserved(name):
    """Whether a name contains a word of the conversation format, which no name may."""
    return IMAGE in name or END in name


def fill(template, name):
    """ "... {name} ..." -> (text, (start, end) of the name in it), known by construction: nothing is searched."""
    head, slot, tail = template.partition(SLOT)
    if not slot or SLOT in tail:
        raise ValueError(f"template {template!r} needs {SLOT} exactly once")
    return head + name + tail, (len(head), len(head) + len(name))


def check_per_image(count):
    """How many names a sample may ask for; UserError unless a whole number from 1."""
    if type(count) is not int or count < 1:
        raise UserError(f"per_image is {count!r}; give a whole number from 1, the conversations about one image")
    return count


def ask_for(name, mask, questions, answers, rng):
    """One question and its answer with a span on the name, which owns mask number `mask` of the sample. -> Dialogue."""
    question, _ = fill(questions[rng.integers(len(questions))], name)
    answer, span = fill(answers[rng.integers(len(answers))], name)
    return Dialogue(((question, answer),), (Span(0, *span),), (mask,))
