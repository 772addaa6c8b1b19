"""The reference's search for spans (D 4.1.5) against a transcription of its rules, and where it differs from ours."""

import numpy as np
import pytest
from fixtures_partonomy import question, write_entries
from PIL import Image

from configs.tiny import get_config
from data_pipelines.conversation import BEGIN, IMAGE, Span, answer_spans, encode, join_parts
from data_pipelines.explanatory import Explanatory
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.rows import RowBuilder
from data_pipelines.string_search import search_spans
from data_pipelines.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def answer_of(label, parts):
    return f"The {label} in the image has the following visible parts: {join_parts(parts)}."


def encoded_of(tokenizer, *turns):
    turns = [(f"{IMAGE}\n{turns[0][0]}", turns[0][1]), *turns[1:]]
    return encode(turns, tokenizer, "llava_v1")


def found(tokenizer, turns, names, **options):
    """[(word, number of tokens before it)] and the numbers of the names."""
    encoded, numbers = search_spans(encoded_of(tokenizer, *turns), names, tokenizer, **options)
    places = [np.flatnonzero(encoded.span_of_token == slot) for slot in range(1, encoded.num_spans + 1)]
    assert all(encoded.bio[place[0]] == BEGIN and (np.diff(place) == 1).all() for place in places)
    assert (encoded.bio == BEGIN).sum() == len(places) == len(numbers)
    return [(tokenizer.decode(encoded.tokens[place]).strip(), encoded.offsets[place[0], 0]) for place in places], numbers


def test_a_plain_answer_has_the_constructed_spans(tokenizer):
    parts = ("base", "lamp shade", "pole")
    answer = answer_of("desk lamp", parts)
    spans = [Span(0, *characters) for characters in answer_spans(answer, parts)]
    turns = [(f"{IMAGE}\nWhat?", answer)]
    constructed = encode(turns, tokenizer, "llava_v1", spans)
    searched, numbers = search_spans(encode(turns, tokenizer, "llava_v1"), parts, tokenizer)
    assert numbers == [0, 1, 2]
    for name in ("bio", "span_of_token", "tokens"):
        np.testing.assert_array_equal(getattr(searched, name), getattr(constructed, name))


def test_a_part_in_the_label_of_the_object_takes_the_span(tokenizer):  # acceptance test 5 of D 7.5, the other way round
    answer = answer_of("wheel loader", ("cab", "wheel"))
    text = encoded_of(tokenizer, ("Which?", answer)).text
    words, numbers = found(tokenizer, [("Which?", answer)], ("cab", "wheel"))
    assert numbers == [1, 0] and [word for word, _ in words] == ["wheel", "cab"]
    assert text[words[0][1] :].strip().startswith("wheel loader")
    words, numbers = found(tokenizer, [("Which?", answer)], ("cab", "wheel"), every=True)  # its evaluation labels every place
    assert numbers == [1, 0, 1] and [word for word, _ in words] == ["wheel", "cab", "wheel"]


def test_longer_names_come_first_and_words_are_whole_on_the_right(tokenizer):
    answer = answer_of("cart", ("front wheel", "wheel"))
    words, numbers = found(tokenizer, [("Which?", answer)], ("wheel", "front wheel"))
    assert [word for word, _ in words] == ["front wheel", "wheel"] and numbers == [1, 0]
    assert tokenizer.tokenize("A lampshade")[1] == "▁lamp"  # the beginning of a longer word is no word
    assert found(tokenizer, [("Which?", "A lampshade.")], ("lamp",)) == ([], [])


def test_nothing_before_the_answer_and_the_second_question_too(tokenizer):
    turns = [("Where is the pole?", "It is a mug."), ("Does it have a handle?", "It has a handle, and pole.")]
    words, numbers = found(tokenizer, turns, ("handle", "pole"))
    text = encoded_of(tokenizer, *turns).text
    assert numbers == [0, 1]
    assert text.find("handle") - 1 <= words[0][1] <= text.find("handle")  # in the question
    assert words[1][1] > text.rfind("handle")
    assert found(tokenizer, turns, ("door", "")) == ([], [])
    assert found(tokenizer, [turns[1]], ("pole", "pole"))[1] == [1]


def test_the_switch_reaches_folder_and_mixture(tokenizer, tmp_path):
    """A head word in the answer: ours labels it, the search looks for the part's own name and finds it in the label, or not."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (72, 40)).save(tmp_path / "images/a.png")
    entry = question("images/a.png", (40, 72), parts=("pole", "base"))
    entry["answer_choices"][0] = "The desk lamp on a pole in the image has the following visible parts: mast, and foot."
    write_entries(tmp_path, [entry])
    labelled = {}
    for value in ("constructed", "string_search"):
        config = get_config()
        config.data.update(template="llava_v1", max_tokens=120, span_source=value)
        source = PartonomySource(tmp_path, "train", config, tokenizer)
        row, counts = source.row(source[0], (0,), grounded=True)
        mixed, account = RowBuilder(config, tokenizer).build(
            Explanatory(tmp_path), 0, np.random.default_rng(0), grounded=True, sample_id=0
        )
        for name in ("bio", "span_of_token", "span_valid", "span_mask_index", "masks", "mask_valid"):
            np.testing.assert_array_equal(row[name], mixed[name])
        lost = {"constructed": 0, "string_search": 1}[value]
        assert account.total("lost spans: string_search") == counts["lost spans: string_search"] == lost
        spans = [row["tokens"][0][row["span_of_token"][0] == s + 1] for s in np.flatnonzero(row["span_valid"][0])]
        labelled[value] = [tokenizer.decode(tokens).strip() for tokens in spans]
    assert labelled == {"constructed": ["mast", "foot"], "string_search": ["pole"]}
