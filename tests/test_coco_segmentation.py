import pickle

import numpy as np
import pytest
from fixtures_folders import HW, box, box_mask, run_lengths
from pycocotools import mask as coco_mask

from data_pipelines.coco_segmentation import Segmentations, rasterise


def ring(rng, corners, hw, reach=1.0):
    """A random simple polygon around a point of the image, which may leave it."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(0.3, 1.0, corners) * min(hw) * reach
    centre = rng.uniform(0.2, 0.8, 2) * hw[::-1]
    return centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_is_what_the_coco_tools_draw_but_for_the_outline(seed):
    rng = np.random.default_rng(seed)
    hw = (90, 140)
    corners = ring(rng, int(rng.integers(5, 40)), hw)
    mine = rasterise(corners, hw)
    theirs = coco_mask.decode(coco_mask.frPyObjects([corners.reshape(-1).tolist()], *hw))[..., 0]
    different = np.argwhere(mine != theirs)
    edges = [np.linspace(a, b, 400) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]
    outline = np.concatenate(edges)
    for row, column in different:
        assert np.hypot(*(outline - (column + 0.5, row + 0.5)).T).min() < 1.0
    assert abs(int(mine.sum()) - int(theirs.sum())) <= 0.02 * theirs.sum() + 5


def test_boxes_cover_exactly_their_pixels():
    np.testing.assert_array_equal(rasterise(np.reshape(box(3, 5, 11, 9), (-1, 2)), HW), box_mask((3, 5, 11, 9)))
    assert rasterise(np.reshape(box(-10, -10, 100, 100), (-1, 2)), HW).all()
    assert not rasterise(np.reshape(box(70, 5, 90, 9), (-1, 2)), HW).any()
    assert not rasterise(np.reshape(box(3, 5, 3.2, 9), (-1, 2)), HW).any()  # holds no pixel centre
    assert not rasterise(np.reshape(box(3, 5.1, 9, 5.4), (-1, 2)), HW).any()


def test_a_ring_that_crosses_itself_is_even_odd():
    bow_tie = np.array([(10, 10), (30, 10), (10, 30), (30, 30)], float)
    mask = rasterise(bow_tie, HW)
    assert mask[12, 20]
    assert mask[28, 20]
    assert not mask[20, 12]


def test_four_corners_are_no_box():  # D17
    slanted = [10.0, 2.0, 30.0, 12.0, 20.0, 32.0, 0.0, 22.0]
    segmentations = Segmentations()
    mask = segmentations.mask([segmentations.add([slanted], HW)], HW)
    assert mask[17, 15]
    assert not mask[3, 1]
    assert not mask[30, 28]
    assert abs(int(mask.sum()) - 500) < 15
    triangle = segmentations.mask([segmentations.add([[0, 0, 20, 0, 0, 20]], HW)], HW)
    assert abs(int(triangle.sum()) - 200) < 15


def test_overlapping_rings_are_ones_and_zeros():  # D23
    segmentations = Segmentations()
    number = segmentations.add([box(2, 2, 20, 20), box(10, 10, 30, 30), [1.0, 1.0, 5.0, 5.0]], HW)  # the last is a line
    np.testing.assert_array_equal(segmentations.mask([number], HW), box_mask((2, 2, 20, 20), (10, 10, 30, 30)))


def test_run_lengths_and_unions_after_pickling():
    one, two = box_mask((0, 0, 10, 10)), box_mask((5, 5, 50, 30))
    segmentations = Segmentations()
    numbers = [
        segmentations.add(run_lengths(one), HW),
        segmentations.add([run_lengths(two)], HW),
        segmentations.add([box(0, 30, 60, 40)], HW),
        segmentations.add({"size": list(HW), "counts": [0, HW[0], HW[0] * (HW[1] - 1)]}, HW),
    ]
    copy = pickle.loads(pickle.dumps(segmentations))
    assert len(copy) == 4
    np.testing.assert_array_equal(copy.mask(numbers[:1], HW), one)
    np.testing.assert_array_equal(copy.mask(numbers[1:2], HW), two)
    np.testing.assert_array_equal(copy.mask(numbers[2:3], HW), box_mask((0, 30, 60, 40)))
    np.testing.assert_array_equal(copy.mask(numbers[3:], HW), box_mask((0, 0, 1, 40)))
    np.testing.assert_array_equal(copy.mask(numbers[:2], HW), one | two)
    assert not copy.mask([], HW).any()


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        5,
        "words",
        [],
        [[]],
        [[1.0, 2.0]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, 1e9]],
        [[1, 2, 3, 4, 5, 1e300]],
        [5, 6],
        [None],
        {"size": [3, 3], "counts": "1"},
        {"size": list(HW)},
        {},
        [{"size": list(HW), "counts": [40, 2360]}, box(0, 0, 5, 5)],
    ],
)
def test_what_is_no_segmentation_is_refused_and_leaves_nothing(segmentation):
    segmentations = Segmentations()
    with pytest.raises(ValueError, match=r"segmentation|polygon|run lengths"):
        segmentations.add(segmentation, HW)
    number = segmentations.add([box(1, 1, 4, 4)], HW)
    assert number == 0
    np.testing.assert_array_equal(segmentations.mask([0], HW), box_mask((1, 1, 4, 4)))


def test_broken_run_lengths_are_found_when_they_are_read():
    segmentations = Segmentations()
    number = segmentations.add({"size": list(HW), "counts": [5, 5]}, HW)
    with pytest.raises(ValueError, match="run lengths cover 10 pixels"):
        segmentations.mask([number], HW)
