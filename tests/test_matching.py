"""Parts to objects: areas of any size (D1), owners, ties, and what belongs to nothing."""

import numpy as np
import pytest

from data_pipelines.masks import encode_rle
from data_pipelines.partonomy.matching import Region, best_match, containment, match

HW = (200, 300)


def region(number, x0, y0, x1, y1, name="dog", owner=None):
    mask = np.zeros(HW, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return Region(number, name, encode_rle(mask), owner)


def found(objects, parts, **options):
    matches, lost = match(objects, parts, **options)
    return {m.object.id if m.object else None: [p.id for p in m.parts] for m in matches}, [p.id for p in lost]


def test_a_part_of_three_thousand_pixels_inside_its_object_scores_one():
    part, whole, other = region(1, 10, 10, 70, 60), region(2, 0, 0, 100, 100), region(3, 60, 0, 200, 100)
    assert containment([part], [whole, other]).tolist() == [[1.0, pytest.approx(10 * 50 / 3000)]]
    assert found([whole, other], [part]) == ({2: [1]}, [])


@pytest.mark.parametrize("side", [16, 51, 150, 199])  # areas around multiples of 256 and far above
def test_scores_are_shares_of_the_part_whatever_its_size(side):
    part, half = region(1, 0, 0, side, side), region(2, 0, 0, 300, side // 2)
    assert containment([part], [half])[0, 0] == pytest.approx((side // 2) / side)


def test_each_part_goes_to_the_object_that_contains_most_of_it():
    left, right = region(1, 0, 0, 100, 100), region(2, 90, 0, 200, 100)
    parts = [region(3, 80, 0, 95, 10), region(4, 92, 0, 120, 10), region(5, 150, 0, 160, 10), region(6, 250, 0, 260, 10)]
    assert found([left, right], parts) == ({1: [3], 2: [4, 5]}, [6])


def test_less_than_a_tenth_on_an_object_is_nothing():
    left, right = region(1, 0, 0, 100, 100), region(2, 200, 0, 250, 100)
    assert found([left, right], [region(3, 95, 0, 195, 10)]) == ({}, [3])
    assert found([left, right], [region(3, 90, 0, 190, 10)]) == ({1: [3]}, [])


def test_of_nested_objects_the_smaller_one_has_the_part():
    outer, inner = region(1, 0, 0, 200, 100), region(2, 20, 20, 80, 80)
    assert found([outer, inner], [region(3, 30, 30, 40, 40)]) == ({2: [3]}, [])
    twin = region(7, 20, 20, 80, 80)
    assert found([twin, inner], [region(3, 30, 30, 40, 40)]) == ({2: [3]}, [])


def test_a_lone_object_has_all_parts_unless_they_may_be_of_other_kinds():
    whole, far = region(1, 0, 0, 10, 10), region(2, 100, 100, 120, 120)
    assert found([whole], [far]) == ({1: [2]}, [])
    assert found([whole], [far], lone_takes_all=False) == ({}, [2])


def test_without_objects_parts_are_together_or_by_owner():
    parts = [region(1, 0, 0, 9, 9), region(2, 50, 0, 59, 9)]
    assert found([], parts) == ({None: [1, 2]}, [])
    matches, lost = match(
        [], [region(1, 0, 0, 9, 9, owner=7), region(2, 50, 0, 59, 9, owner=8), region(3, 0, 9, 9, 9, owner=7)]
    )
    assert [[p.id for p in m.parts] for m in matches] == [[1, 3], [2]]
    assert lost == []


def test_the_owner_that_the_source_names_wins_over_overlap():
    left, right = region(1, 0, 0, 100, 100, owner=1), region(2, 0, 0, 200, 100, owner=2)
    assert found([left, right], [region(3, 0, 0, 10, 10, owner=2)]) == ({2: [3]}, [])
    assert found([left], [region(3, 0, 0, 10, 10, owner=9)]) == ({}, [3])


def test_most_parts_then_largest_object_then_first():
    small, large = region(1, 0, 0, 10, 10), region(2, 100, 0, 150, 100)
    matches, _ = match([small, large], [region(3, 0, 0, 5, 5), region(4, 5, 5, 10, 10), region(5, 100, 0, 110, 10)])
    assert best_match(matches).object.id == 1
    matches, _ = match([small, large], [region(3, 0, 0, 5, 5), region(5, 100, 0, 110, 10)])
    assert best_match(matches).object.id == 2
