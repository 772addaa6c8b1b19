"""Masks as run lengths give the numbers of the decoded masks; rims equal repeated erosion."""

import numpy as np
import pytest
from scipy import ndimage

from plum_jax import coco
from plum_jax.evaluation import boundary, masks, run_lengths


def blobs(rng, count, hw=(23, 17)):
    """Masks of all sizes, empty and full ones among them."""
    found = [rng.random(hw) < rng.choice([0.0, 0.1, 0.5, 1.0]) for _ in range(count)]
    found[0][:] = False
    return found


@pytest.mark.parametrize("policy", masks.EMPTY_UNION)
def test_iou_is_that_of_the_pixels(policy):
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = blobs(rng, 5), blobs(rng, 4)
        want = [[(x & y).sum() / (x | y).sum() if (x | y).any() else masks.EMPTY_UNION[policy] for y in b] for x in a]
        got = run_lengths.iou_matrix([coco.encode(m) for m in a], [coco.encode(m) for m in b], empty_union=policy)
        np.testing.assert_array_equal(got, want)
    assert run_lengths.iou_matrix([], [coco.encode(a[0])]).shape == (0, 1)


def test_shares_unions_areas_and_boxes():
    rng = np.random.default_rng(1)
    a = blobs(rng, 4)
    rles = [coco.encode(m) for m in a]
    np.testing.assert_array_equal(run_lengths.areas(rles), [m.sum() for m in a])
    got = run_lengths.shares(rles, rles)
    for i, j in np.ndindex(got.shape):
        want = (a[i] & a[j]).sum() / a[i].sum() if a[i].any() else np.nan
        np.testing.assert_equal(got[i, j], want)
    np.testing.assert_array_equal(coco.decode(run_lengths.union(rles)), np.any(a, axis=0))
    rectangle = np.zeros((23, 17), bool)
    rectangle[3:9, 5:16] = True
    assert run_lengths.box(5, 3, 11, 6, (23, 17)) == coco.encode(rectangle)
    assert run_lengths.bounds(coco.encode(rectangle)) == (5, 3, 11, 6)
    assert run_lengths.bounds(run_lengths.empty((23, 17))) == (0, 0, 0, 0)
    assert coco.decode(run_lengths.full((23, 17))).all() and not coco.decode(run_lengths.empty((23, 17))).any()
    assert run_lengths.box(0, 0, 17, 23, (23, 17)) == run_lengths.full((23, 17))


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        ({"size": [4, 5], "counts": "d0"}, "size .4, 5.*image .4, 6."),
        ({"size": [4, 6], "counts": [24]}, "counts is a list"),
        ({"size": [4, 6], "counts": "d0"}, "cover 20 pixels"),
        ({"counts": "d0"}, "size and counts"),
    ],
)
def test_malformed_masks_are_named(rle, said):
    with pytest.raises(ValueError, match=said):
        run_lengths.check(rle, (4, 6))
    assert run_lengths.check({**coco.encode(np.eye(4, 6)), "label": "x"}, (4, 6)) == coco.encode(np.eye(4, 6))


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_rim_is_what_erosion_removes(width):
    rng = np.random.default_rng(width)
    for size in ((24, 31), (9, 40), (5, 5)):
        mask = ndimage.binary_closing(rng.random(size) < 0.6, iterations=2) | (rng.random(size) < 0.2)
        eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
        np.testing.assert_array_equal(boundary.rim(mask, width), mask & ~eroded)
    assert not boundary.rim(np.zeros((7, 8), bool), width).any()


def test_boundary_iou_by_hand():
    """A 10 x 10 square inside one of 12 x 12, rims one pixel wide: they share nothing though the masks' IoU is 100 / 144."""
    small, large = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    small[5:15, 5:15], large[4:16, 4:16] = True, True
    rims = [boundary.rim_of(coco.encode(m)) for m in (small, large)]
    assert boundary.distance((20, 20)) == 1 and boundary.distance((480, 640)) == 16
    assert run_lengths.areas(rims).tolist() == [36, 44]
    assert run_lengths.iou_matrix(rims[:1], rims[1:])[0, 0] == 0.0
    assert run_lengths.iou_matrix(rims[:1], rims[:1])[0, 0] == 1.0
    whole = boundary.rim_of(run_lengths.full((20, 20)))
    assert run_lengths.areas([whole])[0] == 76  # the border of the image is an outline
