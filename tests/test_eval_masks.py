"""Ways to pair masks and means on cases small enough to check by hand (D 5.2)."""

import itertools

import numpy as np
import pytest

from plum_jax.evaluation import masks


def pairs(matrix, strategy):
    return np.asarray(matrix)[masks.pair_indices(matrix, strategy)]


def test_three_predictions_in_another_order():
    matrix = np.eye(3)[[2, 0, 1]]
    np.testing.assert_array_equal(pairs(matrix, "paired"), [0, 0, 0])
    for name in ("greedy", "hungarian"):
        np.testing.assert_array_equal(pairs(matrix, name), [1, 1, 1])


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (3, 3), (1, 5)])
def test_assignments_against_brute_force(shape):
    matrix = np.random.default_rng(0).random(shape)
    before = matrix.copy()
    short, long = min(shape), max(shape)
    oriented = matrix if shape[0] <= shape[1] else matrix.T
    best = max(sum(oriented[i, p[i]] for i in range(short)) for p in itertools.permutations(range(long), short))
    np.testing.assert_allclose(pairs(matrix, "hungarian").sum(), best)
    greedy = pairs(matrix, "greedy")
    assert len(greedy) == short and greedy[0] == matrix.max() and greedy.sum() <= best + 1e-12
    np.testing.assert_array_equal(pairs(matrix, "paired"), np.diagonal(matrix))
    np.testing.assert_array_equal(matrix, before)


def test_greedy_is_not_the_best_assignment():
    matrix = [[0.9, 0.8], [0.8, 0.1]]
    assert pairs(matrix, "greedy").tolist() == [0.9, 0.1] and sorted(pairs(matrix, "hungarian")) == [0.8, 0.8]


def test_nan_pairs_are_left_out():
    matrix = np.array([[np.nan, 0.5], [0.25, np.nan]])
    np.testing.assert_array_equal(pairs(matrix, "hungarian"), [0.5, 0.25])
    assert masks.macro([[np.nan, 0.5], [np.nan]]) == 0.5
    assert masks.micro([[np.nan, 0.5], [np.nan]]) == 0.5


@pytest.mark.parametrize("strategy", masks.STRATEGIES[:3])
def test_nothing_to_pair(strategy):
    assert pairs(np.zeros((0, 3)), strategy).size == pairs(np.zeros((2, 0)), strategy).size == 0


def test_macro_and_micro():
    found = [[1.0], [0.0, 0.0, 0.5], []]
    assert masks.macro(found) == pytest.approx((1 + 0.5 / 3) / 2)
    assert masks.micro(found) == pytest.approx(1.5 / 4)
    assert masks.macro([[]]) is None and masks.micro([]) is None


def test_wrong_strategy_is_named():
    with pytest.raises(ValueError, match="best.*paired"):
        masks.pair_indices(np.ones((1, 1)), "best")
