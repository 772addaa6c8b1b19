import re

import numpy as np
import pytest

from data_pipelines.class_names import ADE20K, COCO_STUFF
from data_pipelines.conversation import END, IMAGE, encode
from data_pipelines.naming import SLOT, ask_for, check_per_image, fill, is_reserved, normalise
from data_pipelines.templates import refer, semantic
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.errors import UserError


def test_one_form_of_a_name():
    assert normalise("  Traffic \n Light ") == "traffic light"
    assert normalise(normalise("Élan")) == "élan"
    assert is_reserved(f"a {IMAGE}")
    assert is_reserved(f"a{END}")
    assert not is_reserved("image")


def test_filling_knows_where_the_name_stands():
    assert fill("The {name}, here.", "cat eye") == ("The cat eye, here.", (4, 11))
    text, (start, end) = fill("A {name}.", "{name} in braces")  # a name is never read as a template
    assert text[start:end] == "{name} in braces"
    for template in ("no slot", "{name} twice {name}"):
        with pytest.raises(ValueError, match="exactly once"):
            fill(template, "cat")


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", True, None])
def test_a_wrong_number_of_names(count):
    with pytest.raises(UserError, match="per_image is"):
        check_per_image(count)


@pytest.mark.parametrize("family", [semantic, refer])
def test_the_lists(family):
    assert (len(family.QUESTIONS), len(family.ANSWERS)) == (11, 16)
    for texts in (family.QUESTIONS, family.ANSWERS):
        assert len(set(texts)) == len(texts)
        assert all(text.count(SLOT) == 1 for text in texts)
    assert all(text.startswith(f"{IMAGE}\n") and text.count(IMAGE) == 1 for text in family.QUESTIONS)
    assert not any(IMAGE in text or END in text or "[SEG]" in text for text in family.ANSWERS)
    assert all(SLOT not in text for text in refer.NO_TARGET_ANSWERS)


@pytest.mark.parametrize("names", [ADE20K, COCO_STUFF])
def test_an_answer_holds_the_name_exactly_once(names):
    for template in semantic.ANSWERS:
        for name in names:
            text, (start, end) = fill(template, name)
            assert [match.span() for match in re.finditer(rf"\b{re.escape(name)}\b", text)] == [(start, end)]


def test_class_lists():
    assert (len(ADE20K), len(COCO_STUFF)) == (150, 182)
    assert (ADE20K[0], ADE20K[12], ADE20K[-1]) == ("wall", "person", "flag")
    assert (COCO_STUFF[0], COCO_STUFF[90], COCO_STUFF[-1]) == ("person", "hair brush", "wood")
    assert all(name == normalise(name) for name in ADE20K + COCO_STUFF)


def test_a_span_has_tokens_of_its_own():
    tokenizer = load_tokenizer("tiny")
    for seed in range(40):
        for texts in (semantic, refer):
            dialogue = ask_for("eye of the cat", 3, texts.QUESTIONS, texts.ANSWERS, np.random.default_rng(seed))
            assert dialogue.masks == (3,)
            encoded = encode(dialogue.turns, tokenizer, "llava_v1", dialogue.spans)
            inside = encoded.offsets[encoded.span_of_token == 1]
            assert "eye of the cat" in encoded.text[inside[0, 0] : inside[-1, 1]]
