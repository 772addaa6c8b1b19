"""The answer normaliser and the metrics of TextVQA, GQA and POPE against cases worked out by hand."""

import collections

import pytest

from plum_jax.evaluation.answer_words import CONTRACTIONS, normalise_answer
from plum_jax.evaluation.word_metrics import contains, exact_match, is_clear, soft_accuracy, yes_no_summary, yes_or_no


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The Nokia.", "nokia"),
        ("two  dogs and a cat", "2 dogs and cat"),
        ("None", "0"),
        ("dont", "don't"),
        ("youre", "you're"),
        ("Shell, well!", "shell well "[:-1]),
        ("8:00 p.m.", "8:00 pm"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("red - white", "red white"),
        ("black/white", "black white"),
        ("John's", "john 's"),
        ("what?\n", "what"),
        ("an apple\tthe pear", "apple pear"),
        ("rock-'n'-roll, baby - yes", "rock'n'roll baby yes"),  # a dash beside a space: all dashes vanish
        ("." * 40 + "x", "x"),  # the original stops after 32
        ("", ""),
    ],
)
def test_normaliser(text, wanted):
    assert normalise_answer(text) == wanted


def test_the_table_has_its_entries():
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["somebody'd"] == "somebodyd" and CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert normalise_answer("zero one two three four five six seven eight nine ten") == "0 1 2 3 4 5 6 7 8 9 10"


@pytest.mark.parametrize("count, wanted", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_is_that_of_vqa(count, wanted):
    """The published values for ten annotators: 0, 0.3, 0.6, 0.9, 1."""
    references = ["yes"] * count + [f"other {i}" for i in range(10 - count)]
    assert soft_accuracy("Yes.", references) == pytest.approx(wanted)


def test_soft_accuracy_is_the_mean_over_leaving_one_out():
    references = ["a cat", "cat", "Cat!", "dog", "dog", "two", "2", "cow", "hen", "bee"]
    normal = [normalise_answer(r) for r in references]
    for answer in ("cat", "dog", "2", "cow", "fox"):
        scores = [min(1, (normal[:i] + normal[i + 1 :]).count(answer) / 3) for i in range(10)]
        assert soft_accuracy(answer, references) == pytest.approx(sum(scores) / 10)


def test_gqa_is_exact():
    assert exact_match("Cat.", "cat") and exact_match(" traffic light ", "traffic light")
    assert not exact_match("a cat", "cat") and not exact_match("cats", "cat")


def test_contains_is_what_the_reference_does():
    assert contains("snow", ["no"]) == 1.0  # D38
    assert contains("It is a cat", ["dog", "cat"]) == 1.0
    assert contains("bird", ["no"]) == 0.0
    assert contains("nokia", ["nokia"] * 2 + ["x"] * 8) == pytest.approx(0.6)  # a soft score above 0 stays
    assert soft_accuracy("no", ["no"]) == 0.0  # with one reference there is no other annotator


@pytest.mark.parametrize(
    "answer, said, clear",
    [
        ("Yes", "yes", True), ("No", "no", True), ("no, there is none", "no", True), ("There is not a dog. Yes", "no", True),
        ("Yes. There is no dog", "yes", True), ("NO", "yes", False), ("nothing", "yes", False), ("", "yes", False),
    ],
)  # fmt: skip
def test_pope_reads_the_first_sentence(answer, said, clear):
    assert (yes_or_no(answer), is_clear(answer)) == (said, clear)


def test_pope_by_hand():
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] * 1 + [("no", "no")] * 4 + [("no", "yes")] * 2
    found = yes_no_summary([(*pair, True) for pair in pairs])
    assert found["accuracy"] == 0.7 and found["yes_ratio"] == 0.4
    assert (found["precision"], found["recall"]) == (0.75, 0.6)
    assert found["f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert (found["n_questions"], found["n_neither_yes_nor_no"]) == (10, 0)
    assert yes_no_summary([])["accuracy"] is None
    assert collections.Counter(said for said, _ in pairs)["yes"] == 4
