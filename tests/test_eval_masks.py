"""Mask metrics on cases small enough to check by hand (D 5.2, D 7.5)."""

import itertools

import numpy as np
import pytest

from plum_jax.evaluation import masks


def square(top, left, size, hw=(12, 9)):
    mask = np.zeros(hw, bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_iou_of_shifted_squares():
    assert masks.iou(square(0, 0, 4), square(0, 2, 4)) == 8 / 24
    assert masks.iou(square(0, 0, 4).astype(np.uint8), square(0, 0, 4)) == 1.0


@pytest.mark.parametrize(("policy", "want"), [("one", 1.0), ("zero", 0.0), ("skip", np.nan)])
def test_empty_against_empty_follows_the_policy(policy, want):
    empty = np.zeros((5, 7), bool)
    np.testing.assert_equal(masks.iou(empty, empty, empty_union=policy), want)
    assert masks.iou(empty, square(0, 0, 2, (5, 7)), empty_union=policy) == 0.0


def test_ignored_pixels_are_outside_of_both():
    target = np.zeros((4, 4), np.uint8)
    target[0, :2], target[1:] = 1, 255
    predicted = np.zeros((4, 4), bool)
    predicted[0, :2], predicted[1] = True, True
    assert masks.iou(predicted, target) == 1.0
    assert masks.iou(predicted, target, ignore255_as_foreground=True) == 6 / 14


def test_three_predictions_in_another_order():
    targets = [square(0, 0, 3), square(4, 0, 3), square(8, 4, 3)]
    predicted = [targets[2], targets[0], targets[1]]
    scores = masks.all_strategies(predicted, targets)
    np.testing.assert_array_equal(scores["paired"], [0, 0, 0])
    for name in ("greedy", "hungarian"):
        np.testing.assert_array_equal(np.sort(scores[name]), [1, 1, 1])
    np.testing.assert_array_equal(scores["union"], [1])


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (3, 3), (1, 5)])
def test_assignments_against_brute_force(shape):
    matrix = np.random.default_rng(0).random(shape)
    n, m = shape
    short, long = min(shape), max(shape)
    oriented = matrix if n <= m else matrix.T
    best = max(sum(oriented[i, p[i]] for i in range(short)) for p in itertools.permutations(range(long), short))
    np.testing.assert_allclose(masks.pair_ious(matrix, "hungarian").sum(), best)
    greedy = masks.pair_ious(matrix, "greedy")
    assert len(greedy) == short and greedy[0] == matrix.max() and greedy.sum() <= best + 1e-12
    np.testing.assert_array_equal(masks.pair_ious(matrix, "paired"), np.diagonal(matrix))


def test_nan_pairs_are_left_out():
    matrix = np.array([[np.nan, 0.5], [0.25, np.nan]])
    np.testing.assert_array_equal(masks.pair_ious(matrix, "hungarian"), [0.5, 0.25])
    assert masks.macro([[np.nan, 0.5], [np.nan]]) == 0.5
    assert masks.micro([[np.nan, 0.5], [np.nan]]) == 0.5


def test_one_prediction_for_three_targets():
    targets = {"lid": square(0, 0, 3), "handle": square(4, 0, 3), "spout": square(8, 4, 3)}
    loose = masks.all_strategies([targets["lid"]], list(targets.values()))
    assert masks.macro([loose["paired"]]) == 1.0  # the published protocol forgives the missing two
    strict, extra = masks.paired_strict({"lid": targets["lid"], "base": square(1, 1, 2)}, targets)
    assert strict == {"lid": 1.0, "handle": 0.0, "spout": 0.0} and extra == 1
    assert masks.macro([list(strict.values())]) == pytest.approx(1 / 3)


def test_macro_and_micro():
    pairs = [[1.0], [0.0, 0.0, 0.5], []]
    assert masks.macro(pairs) == pytest.approx((1 + 0.5 / 3) / 2)
    assert masks.micro(pairs) == pytest.approx(1.5 / 4)
    assert masks.macro([[]]) is None and masks.micro([]) is None


def test_order_of_parts_does_not_matter_to_strict():
    rng = np.random.default_rng(1)
    predicted = {name: rng.random((9, 7)) > 0.5 for name in "abc"}
    targets = {name: rng.random((9, 7)) > 0.5 for name in "cab"}
    forward, _ = masks.paired_strict(predicted, targets)
    backward, _ = masks.paired_strict(dict(reversed(predicted.items())), dict(reversed(targets.items())))
    assert forward == backward
    assert masks.all_strategies([], [targets["a"]])["paired"].size == 0


def test_wrong_strategy_and_sizes_are_named():
    with pytest.raises(ValueError, match="best.*paired"):
        masks.pair_ious(np.ones((1, 1)), "best")
    with pytest.raises(ValueError, match="different sizes"):
        masks.iou(np.ones((2, 3), bool), np.ones((3, 2), bool))
