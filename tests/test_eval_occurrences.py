"""Places of part names as the published evaluation finds them (D 4.1.5)."""

import pytest

from data_pipelines.conversation import IMAGE, Span, encode
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.evaluation.occurrences import places, token_ranges
from plum_jax.evaluation.spans import decode_spans

ASKED = "USER: What wheel is it? ASSISTANT: "


def names(answer, parts):
    text = ASKED + answer
    return [(text[a:b], a - len(ASKED), name) for a, b, name in places(text, parts)]


@pytest.mark.parametrize(
    ("answer", "parts", "want"),
    [
        ("The car has: wheel, and hood.", ["hood", "wheel"], ["wheel", "hood"]),  # in text order; not in the question
        ("The wheel loader has: wheel.", ["wheel"], ["wheel", "wheel"]),  # every occurrence
        ("It has: wheels, and wheel.", ["wheel"], ["wheel"]),  # not a part of a word
        ("It has: cartwheel.", ["wheel"], []),
        ("It has: table leg, and leg.", ["leg", "table leg"], ["table leg", "leg"]),  # the longest first
        ("It has: leg rest, and leg.", ["leg", "leg rest"], ["leg rest", "leg"]),
        ("It has: c++ label.", ["c++"], ["c++"]),
        ("Nothing.", ["wheel"], []),
    ],
)
def test_places(answer, parts, want):
    assert [name for _, _, name in names(answer, parts)] == want
    assert all(text == name for text, _, name in names(answer, parts))


def test_no_answer_no_place():
    assert places("USER: a wheel", ["wheel"]) == []


def test_tokens_are_those_of_the_constructed_spans():
    """Where each name stands once, both ways find the same tokens."""
    tokenizer = load_tokenizer("tiny")
    answer = "The pot in the image has the following visible parts: handle, and lid."
    spans = [Span(0, answer.index(word), answer.index(word) + len(word)) for word in ("handle", "lid")]
    encoded = encode([(f"{IMAGE}\nWhat parts?", answer)], tokenizer, "brief", spans)
    found = token_ranges(encoded, ["lid", "handle"])
    assert [name for _, name in found] == ["handle", "lid"]
    assert [tokens for tokens, _ in found] == decode_spans(encoded.bio)
