import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_pipelines.masks import decode_polygon, decode_rle, decode_segmentation, encode_rle, part_masks, patch_parts


def random_mask(hw, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.random((-(-hw[0] // 7), -(-hw[1] // 7))) < 0.4
    return np.kron(coarse, np.ones((7, 7), bool))[: hw[0], : hw[1]].astype(np.uint8)


@pytest.mark.parametrize("hw", [(1, 1), (37, 123), (300, 200), (5, 4000)])
def test_run_lengths_both_ways(hw):
    for seed in range(5):
        mask = random_mask(hw, seed)
        encoded = encode_rle(mask)
        assert encoded["size"] == list(hw)
        np.testing.assert_array_equal(decode_rle(encoded["counts"], hw), mask)
        np.testing.assert_array_equal(coco_mask.decode(encoded), mask)
    for mask in (np.zeros(hw, np.uint8), np.ones(hw, np.uint8)):
        np.testing.assert_array_equal(decode_rle(encode_rle(mask)["counts"], hw), mask)


def test_single_pixels_make_negative_differences():
    mask = np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8)
    mask[:, 20:40] = 1
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)["counts"], (64, 64)), mask)


def test_plain_run_lengths():
    np.testing.assert_array_equal(decode_rle([1, 2, 3], (2, 3)), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("counts", ["", "5<", "zzz", "X<3h12N2O0", "____o", "\x10", "é", [1, 2], [-1, 5, 5]])
def test_malformed_run_lengths(counts):
    with pytest.raises(ValueError, match=r"run|codec|counts"):
        decode_rle(counts, (3, 3))


def test_polygon():
    mask = decode_polygon([2.9, 1.2, 7.0, 1.9, 7.5, 4.0, 2.0, 4.9], (10, 12))
    wanted = np.zeros((10, 12), np.uint8)
    wanted[1:5, 2:8] = 1
    np.testing.assert_array_equal(mask, wanted)
    assert decode_polygon([-5, -5, 50, -5, 50, 50, -5, 50], (10, 12)).all()
    slanted = decode_polygon([5.2, 5.7, 30.1, 8.9, 25.5, 30.4, 6.0, 22.3], (40, 50))
    assert slanted.sum() == 482  # OpenCV's count
    assert slanted[5, 5:10].tolist() == [1] * 5
    assert slanted[5, 10] == 0
    with pytest.raises(ValueError, match="polygon has 4"):
        decode_polygon([1, 2, 3, 4], (5, 5))


@pytest.mark.parametrize(
    "entry", [{}, None, {"counts": "1"}, {"size": [3, 3]}, {"size": [3], "counts": "1"}, {"segmentation": {}}]
)
def test_malformed_entries(entry):
    with pytest.raises(ValueError, match="segmentation has"):
        decode_segmentation(entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"size": [1.5, 2], "counts": [3]}, "segmentation has size"),
        ({"size": ["a", 3], "counts": [3]}, "segmentation has size"),
        ({"size": [0, 3], "counts": [0]}, "segmentation has size"),
        ({"size": [True, 3], "counts": [3]}, "segmentation has size"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "larger than any image"),
        ({"size": [3, 3], "counts": None}, "counts is null, not a"),
        ({"size": [3, 3], "counts": {}}, "counts is {}, not a"),
        ({"size": [3, 3], "counts": [4.5, 4.5]}, "counts is .*, not a"),
        ({"size": [3, 3], "counts": ["9"]}, "counts is .*, not a"),
        ({"size": [3, 3], "counts": [10**30]}, "counts is .*, not a"),
        ({"size": [3, 3], "counts": [-9, 18]}, "counts is .*, not a"),
        ({"size": [3, 3], "counts": "éé"}, "not a compressed"),
        ({"size": [3, 3], "counts": ""}, "not a compressed"),
        ({"size": [3, 3], "counts": "o" * 40 + "0"}, "not a compressed"),
        ({"size": [3, 3], "polygon": 5}, "polygon is 5, not a list"),
        ({"size": [3, 3], "polygon": [0, 0, 2, 0, 2, "a"]}, "polygon is .*, not a list"),
        ({"size": [3, 3], "polygon": [0, 0, 2, 0, 2, float("nan")]}, "polygon is .*, not a list"),
        ({"size": [3, 3], "polygon": [0, 0, 2, 0, 2, 1e300]}, "polygon is .*, not a list"),
    ],
)
def test_wrong_values_are_named(entry, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(entry)


def test_part_masks_are_united_and_sorted():
    first, second = random_mask((20, 30), 1), random_mask((20, 30), 2)
    entries = {"wheel": [encode_rle(first), {"segmentation": encode_rle(second)}], "base": [encode_rle(second)]}
    masks = part_masks(entries, (20, 30))
    assert list(masks) == ["base", "wheel"]
    np.testing.assert_array_equal(masks["wheel"], first | second)
    with pytest.raises(ValueError, match="mask of 'base' is 20 x 30, image is 30 x 20"):
        part_masks(entries, (30, 20))


def test_patch_parts_of_a_padded_view():
    masks = np.zeros((2, 40, 80), np.uint8)
    masks[0, :, :40] = 1  # left half
    masks[1, :10, :15] = 1  # 0.25 x 0.75 of the top left patch, where part 0 covers everything
    labels = patch_parts(masks, [7, 3], (40, 80), 40, 10, "pad").reshape(4, 4)  # one patch is 20 x 20 pixels
    np.testing.assert_array_equal(labels, [[7, 7, 0, 0], [7, 7, 0, 0], [-1] * 4, [-1] * 4])
    masks[0] = 0
    assert patch_parts(masks, [7, 3], (40, 80), 40, 10, "pad")[0] == 3  # 37.5 %
    masks[1, :, 13:] = 0
    masks[1, 7:] = 0
    assert patch_parts(masks, [7, 3], (40, 80), 40, 10, "pad")[0] == 0  # 22.75 %


def test_patch_parts_follow_the_centre_crop():
    masks = np.zeros((1, 40, 80), np.uint8)
    masks[0, :, 40:60] = 1  # the right half of the central square
    labels = patch_parts(masks, [1], (40, 80), 20, 10, "center_crop").reshape(2, 2)
    np.testing.assert_array_equal(labels, [[0, 1], [0, 1]])


@pytest.mark.parametrize("mode", ["pad", "center_crop"])
@pytest.mark.parametrize("hw", [(37, 53), (64, 64), (90, 31)])
def test_patch_parts_average_areas(hw, mode):
    """Against the same average on a grid 240 times finer than the view."""
    from data_pipelines.images import clip_geometry

    masks = np.stack([random_mask(hw, seed) for seed in range(3)])
    size, patch, fine = 24, 6, 40
    labels = patch_parts(masks, [1, 2, 3], hw, size, patch, mode).reshape(4, 4)
    scaled, offset = clip_geometry(hw, size, mode)
    places = [(np.arange(size * fine) + 0.5) / fine + offset[axis] for axis in (0, 1)]
    index = [np.floor(place * hw[axis] / scaled[axis]).astype(int) for axis, place in enumerate(places)]
    valid = [i < hw[axis] for axis, i in enumerate(index)]
    seen = masks[:, np.minimum(index[0], hw[0] - 1)[:, None], np.minimum(index[1], hw[1] - 1)] * np.outer(*valid)
    share = seen.reshape(3, 4, patch * fine, 4, patch * fine).mean((2, 4))
    for y in range(4):
        for x in range(4):
            best = np.sort(share[:, y, x])[::-1]
            if best[0] - best[1] > 0.02 and abs(best[0] - 0.25) > 0.02:
                assert labels[y, x] in (-1, (share[:, y, x].argmax() + 1) if best[0] > 0.25 else 0)
    outside = ~np.outer(*[v.reshape(4, -1).any(1) for v in valid])
    np.testing.assert_array_equal(labels == -1, outside)


def test_patch_parts_without_masks():
    labels = patch_parts(np.zeros((0, 10, 10), np.uint8), [], (10, 10), 8, 4, "pad")
    assert labels.dtype == np.int16
    assert (labels == 0).all()
