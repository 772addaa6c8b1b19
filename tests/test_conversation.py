import numpy as np
import pytest

from data_pipelines.conversation import IMAGE, Span, answer_spans, encode, join_parts, keep_spans, render, truncate
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.errors import UserError

QUESTION = f"{IMAGE}\nWhat visible parts does the wheel loader in the image have?"
PARTS = ("wheel", "cargo box", "cab")
ANSWER = f"The wheel loader in the image has the following visible parts: {join_parts(PARTS)}."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def spans(answer, parts, turn=0):
    return [Span(turn, *characters) for characters in answer_spans(answer, parts)]


def words(encoded, tokenizer):
    """Decoded text of every span."""
    slots = range(1, encoded.num_spans + 1)
    return [tokenizer.decode(encoded.tokens[encoded.span_of_token == slot]).strip() for slot in slots]


def test_lists():
    assert [join_parts(parts) for parts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a, and b", "a, b, and c"]
    for parts in (["wheel"], ["a", "b"], PARTS, ["x, and y", "z"]):
        answer = f"The wheel has the following visible parts: {join_parts(parts)}."
        assert [answer[a:b] for a, b in answer_spans(answer, parts)] == list(parts)


def test_head_words_keep_their_places():
    answer = "The van in the image has the following visible parts in common with a car: light, and wheel."
    assert [answer[a:b] for a, b in answer_spans(answer, ["head light", "front wheel"])] == ["light", "wheel"]


@pytest.mark.parametrize(
    "answer", ["It has a base.", "The parts are: base, lid.", "parts: base, and lid, and pole.", "The database."]
)
def test_answers_without_the_list(answer):
    with pytest.raises(ValueError, match="does not end in the list"):
        answer_spans(answer, ["base", "lid"] if "data" not in answer else ["base"])


def test_render():
    system = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the human's questions."
    )
    rendered = render([("<image>\nWhat?", "It is."), ("And?", None)], "llava_v1")
    assert rendered.text == f"{system} USER: <im_start><image><im_end>\nWhat? ASSISTANT: It is.</s>USER: And? ASSISTANT:"
    assert [rendered.text[a:b] for a, b in rendered.answers] == ["It is.</s>", ""]
    assert render([("Hi", "Yes")], "brief").text == "USER: Hi ASSISTANT: Yes</s>"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("a </s>", "b")], "reserved"),
        ([("a", "b <image>")], "reserved"),
        ([("a <image>", "b")], "reserved"),
        ([("a", None), ("b", "c")], "not the last"),
        ([("<image>a", "b"), ("<image>c", "d")], "2 images"),
    ],
)
def test_bad_turns(turns, message):
    with pytest.raises(UserError, match=message):
        render(turns, "brief")


def test_unknown_template():
    with pytest.raises(UserError, match="llava_v1"):
        render([("a", "b")], "vicuna")


def test_labels_of_one_turn(tokenizer):
    encoded = encode([(QUESTION, ANSWER)], tokenizer, "llava_v1", spans(ANSWER, PARTS))
    tokens = tokenizer.convert_ids_to_tokens(encoded.tokens.tolist())
    assert tokens[encoded.image_position - 1] == "<im_start>"
    assert tokens[encoded.image_position + 1 : encoded.image_position + 4] == ["<im_end>", "▁", "<0x0A>"]
    assert tokens.count("<s>") == 1
    assert tokenizer.decode(encoded.tokens[encoded.loss_weight > 0]).strip() == f"{ANSWER}</s>"
    assert encoded.answer_range == (int(np.flatnonzero(encoded.loss_weight)[0]), len(tokens))
    assert words(encoded, tokenizer) == list(PARTS)  # the wheel of the list, not that of "wheel loader"
    assert (np.flatnonzero(encoded.bio == 1) == [np.flatnonzero(encoded.span_of_token == s)[0] for s in (1, 2, 3)]).all()
    assert ((encoded.bio > 0) == (encoded.span_of_token > 0)).all()
    assert encoded.tokens.dtype == np.int32
    assert encoded.bio.dtype == encoded.span_of_token.dtype == np.int8


def test_words_outside_the_vocabulary_keep_their_prefix_token(tokenizer):
    answer = "parts: xylophone, and é."
    encoded = encode([(QUESTION, answer)], tokenizer, "brief", spans(answer, ["xylophone", "é"]))
    assert words(encoded, tokenizer) == ["xylophone", "é"]
    first = tokenizer.convert_ids_to_tokens(encoded.tokens[encoded.bio == 1].tolist())
    assert all(token.startswith("▁") for token in first)


def test_two_turns_and_open_prompts(tokenizer):
    turns = [(f"{IMAGE}\nWhat is it?", "It is a car."), (QUESTION.removeprefix(f"{IMAGE}\n"), ANSWER)]
    encoded = encode(turns, tokenizer, "llava_v1", spans(ANSWER, PARTS, turn=1))
    assert words(encoded, tokenizer) == list(PARTS)
    assert tokenizer.decode(encoded.tokens[encoded.loss_weight > 0]).replace(" ", "") == f"Itisacar.</s>{ANSWER}</s>".replace(
        " ", ""
    )
    start, end = encoded.answer_range
    assert tokenizer.decode(encoded.tokens[start:end]).strip() == f"{ANSWER}</s>"
    prompt = encode([turns[0], (turns[1][0], None)], tokenizer, "llava_v1")
    assert (encoded.tokens[: len(prompt.tokens)] == prompt.tokens).all()  # the prompt is a prefix of every answer to it
    assert prompt.answer_range == (start, start)
    assert encode([("Hello", "Yes")], tokenizer, "brief").image_position == -1


def test_offsets_point_into_the_text(tokenizer):
    encoded = encode([(QUESTION, ANSWER)], tokenizer, "llava_v1", spans(ANSWER, PARTS))
    for slot, part in enumerate(PARTS, 1):
        pieces = encoded.offsets[encoded.span_of_token == slot]
        assert encoded.text[pieces[0, 0] : pieces[-1, 1]].strip() == part
    assert encoded.text[slice(*encoded.offsets[encoded.image_position])] == IMAGE


def test_overlapping_spans_are_refused(tokenizer):
    with pytest.raises(UserError, match="no token of its own"):
        encode([("a", "wheel base")], tokenizer, "brief", [Span(0, 0, 5), Span(0, 0, 10)])


def test_truncation_drops_whole_spans(tokenizer):
    encoded = encode([(QUESTION, ANSWER)], tokenizer, "llava_v1", spans(ANSWER, PARTS))
    inside = np.flatnonzero(encoded.span_of_token == 2)
    assert len(inside) == 2
    for length, kept in ((len(encoded.tokens), [0, 1, 2]), (inside[1] + 1, [0, 1]), (inside[1], [0]), (inside[0], [0])):
        short, fits = truncate(encoded, int(length))
        assert fits == kept
        assert len(short.tokens) == len(short.bio) == len(short.offsets) == length
        assert words(short, tokenizer) == [PARTS[s] for s in kept]
        assert (short.bio == 1).sum() == len(kept)
        assert short.answer_range[1] == length
    with pytest.raises(UserError, match="max_tokens"):
        truncate(encoded, 10)


def test_keep_spans_closes_up(tokenizer):
    encoded = keep_spans(encode([(QUESTION, ANSWER)], tokenizer, "llava_v1", spans(ANSWER, PARTS)), [0, 2])
    assert words(encoded, tokenizer) == ["wheel", "cab"]
    assert ((encoded.bio > 0) == (encoded.span_of_token > 0)).all()


def test_the_slow_flavour_strips_white_space_beside_the_image_tokens(tokenizer):
    """No lone prefix before <im_start>, neither prefix nor newline after <im_end>, whose next word gets its own (M 1.6)."""
    turns = [(QUESTION, ANSWER), ("And?", None)]
    fast, slow = (encode(turns, tokenizer, "llava_v1", spans(ANSWER, PARTS), flavour=flavour) for flavour in ("fast", "slow"))
    at = fast.image_position
    assert slow.image_position == at - 1
    names, slow_names = (tokenizer.convert_ids_to_tokens(x.tokens.tolist()) for x in (fast, slow))
    assert names[at - 4 : at] == ["▁USER", ":", "▁", "<im_start>"]
    assert names[at + 1 : at + 4] == ["<im_end>", "▁", "<0x0A>"]
    assert slow_names[at - 4 : at - 1] == ["▁USER", ":", "<im_start>"]
    assert slow_names[at : at + 2] == ["<im_end>", "▁What"]
    rest, slow_rest = names.index("▁visible"), at + 2
    assert slow_names[slow_rest:] == names[rest:] and slow_names[: at - 2] == names[: at - 2]
    for name in ("bio", "span_of_token", "loss_weight"):
        np.testing.assert_array_equal(getattr(slow, name)[slow_rest:], getattr(fast, name)[rest:])
    assert words(slow, tokenizer) == list(PARTS)
    assert render([(f"{IMAGE}\nWhat?", "It is.")], "brief", "slow").text == (
        "USER:<im_start><image><im_end>What? ASSISTANT: It is.</s>"
    )
    text_only = [("Hello", "Yes")]
    assert render(text_only, "brief", "slow") == render(text_only, "brief")
