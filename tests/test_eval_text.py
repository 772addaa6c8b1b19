"""Text metrics by hand (D 5.3, D 5.4)."""

import numpy as np
import pytest

from plum_jax.evaluation import text


def test_choose_takes_the_lowest():
    assert text.choose([0.3, 0.1, 0.2]) == 1
    assert text.choose([np.nan, 0.5, 0.4]) == 2


def test_ties():
    assert text.choose([0.5, 0.5, 0.7]) == 0
    assert text.choose([0.5, 0.5, 0.7], tie="wrong", correct=0) == 1
    assert text.choose([0.5, 0.5, 0.7], tie="wrong", correct=1) == 0
    assert text.choose([0.1, 0.5, 0.5], tie="wrong", correct=0) == 0  # no tie at the top
    assert text.choose([np.nan] * 3, tie="wrong", correct=0) == 1  # a broken model is not correct by position


def test_accuracy_counts():
    assert text.accuracy([(0, 0), (1, 0), (2, 2)]) == {"accuracy": 2 / 3, "correct": 2, "total": 3}
    assert text.accuracy([]) == {"accuracy": 0.0, "correct": 0, "total": 0}


def test_part_text_is_micro_averaged():
    pairs = [(["Lid ", "base"], ["lid", "spout", "handle"]), (["wheel"], ["wheel"])]
    scores = text.part_text(pairs)
    assert scores["precision"] == 2 / 3 and scores["recall"] == 2 / 4
    assert scores["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert text.part_text([]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_random_baseline_is_seeded():
    choices, references = [[["a"], ["b"]]] * 50, [["a"]] * 50
    first = text.random_part_text(choices, references)
    assert first == text.random_part_text(choices, references)
    assert 0.2 < first["precision"] < 0.8
    draws = np.random.default_rng(42)
    want = np.mean([draws.integers(2) == 0 for _ in range(50)])
    assert first["precision"] == pytest.approx(want)
