"""Masks and pictures: rotation by EXIF, other sizes, empty and malformed masks; names, copies, links and boxes."""

import os

import numpy as np
import pytest
from part_sources import HW, WHOLE, box_mask, rectangle, write_image
from PIL import Image, ImageOps

from data_pipelines.images import draw_box, load_image
from data_pipelines.masks import decode_segmentation, encode_rle
from data_pipelines.partonomy.descriptor import Instance
from data_pipelines.partonomy.fitting import fit_image
from data_pipelines.partonomy.pictures import boxed_name, output_names, write_images
from plum_jax.errors import UserError

CORNER = (2, 3, 20, 11)  # unlike its mirror images


def fit(folder, masks, box=None, mismatch="drop", name="a.jpg"):
    found, counts = fit_image(folder, [Instance(name, "dog", masks, highlight_box=box)], mismatch)
    return (found[0] if found else None), dict(counts)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_with_a_rotated_picture(tmp_path, orientation):
    write_image(tmp_path / "a.jpg", exif=orientation)
    stored = box_mask(CORNER)
    picture = Image.fromarray(stored * 255)
    picture.getexif()[0x0112] = orientation
    upright = (np.asarray(ImageOps.exif_transpose(picture)) > 0).astype(np.uint8)
    one, counts = fit(tmp_path, {"head": [encode_rle(stored)]}, box=CORNER)
    assert load_image(tmp_path / "a.jpg").shape[:2] == upright.shape
    (entry,) = one.segmentations["head"]
    if orientation < 5:  # nothing says whether such a mask is of the stored picture or of the upright one
        np.testing.assert_array_equal(decode_segmentation(entry), stored)
        assert counts == {}
        return
    np.testing.assert_array_equal(decode_segmentation(entry), upright)
    rows, columns = np.flatnonzero(upright.any(1)), np.flatnonzero(upright.any(0))
    assert one.highlight_box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert counts == {"mask rotated with its image": 1}
    upright_already, counts = fit(tmp_path, {"head": [encode_rle(upright)]})
    assert upright_already.segmentations["head"] == [entry]
    assert counts == {}


def test_masks_of_another_size(tmp_path):
    write_image(tmp_path / "a.jpg")
    half = {"head": [encode_rle(np.eye(HW[0] // 2, HW[1] // 2, dtype=np.uint8))]}
    reason = "instance with a mask of another size than its image"
    assert fit(tmp_path, half)[0] is None
    assert fit(tmp_path, half)[1][reason] == 1
    one, counts = fit(tmp_path, half, mismatch="nearest")
    want = np.eye(HW[0] // 2, HW[1] // 2, dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(decode_segmentation(one.segmentations["head"][0]), want)
    assert counts == {"mask resized to its image": 1}
    with pytest.raises(UserError, match="has a mask of 30 x 40, the upright image is 60 x 80"):
        fit(tmp_path, half, mismatch="error")
    # Height and width exchanged without an EXIF rotation: another size like any other.
    assert fit(tmp_path, {"head": [encode_rle(box_mask(CORNER, HW[::-1]))]})[1][reason] == 1


def test_every_form_of_mask_becomes_run_lengths(tmp_path):
    write_image(tmp_path / "a.jpg")
    size = list(HW)
    x0, y0, x1, y1 = WHOLE
    polygon = {"size": size, "polygon": rectangle((x0, y0, x1 - 1, y1 - 1))}
    runs = decode_segmentation(encode_rle(box_mask(WHOLE))).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], runs, [2]])))
    plain = {"size": size, "counts": np.diff(np.concatenate([[0], edges])).tolist()}
    masks = {"a": [encode_rle(box_mask(WHOLE))], "b": [polygon], "c": [{"segmentation": polygon}], "d": [plain]}
    masks["e"] = [{"segmentation": encode_rle(box_mask(WHOLE)), "image_path": "/x", "is_root_concept": True}]
    one, counts = fit(tmp_path, masks)
    assert counts == {}
    assert all(entries == [encode_rle(box_mask(WHOLE))] for entries in one.segmentations.values())


def test_empty_masks_go_and_malformed_ones_take_their_instance(tmp_path):
    write_image(tmp_path / "a.jpg")
    good, empty = encode_rle(box_mask(WHOLE)), encode_rle(np.zeros(HW, np.uint8))
    one, counts = fit(tmp_path, {"a": [empty, good], "b": [empty]})
    assert one.segmentations == {"a": [good]}
    assert counts == {"empty mask": 2}
    assert fit(tmp_path, {"a": [empty]}) == (None, {"empty mask": 1, "instance with empty masks only": 1})
    for bad in (
        {"size": list(HW), "counts": "zz"},
        {"size": [0, 3], "counts": "02"},
        {"counts": "02"},
        {"size": "x", "counts": "0"},
        7,
    ):
        assert fit(tmp_path, {"a": [good], "b": [bad]}) == (None, {"instance with a malformed mask": 1})


def test_images_that_cannot_be_used(tmp_path):
    masks = {"a": [encode_rle(box_mask(WHOLE))]}
    write_image(tmp_path / "a-1.jpg")  # is no stand-in for a.jpg
    assert fit(tmp_path, masks) == (None, {"image not found": 1})
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a-1.jpg").read_bytes()[:800])
    assert fit(tmp_path, masks) == (None, {"image not readable": 1})


def test_names_clash_only_where_contents_differ(tmp_path):
    paths = [tmp_path / name for name in ("a/x.jpg", "b/x.jpg", "c/X.jpg", "d/x.jpg", "d/y:1.jpg")]
    for path, number in zip(paths, (0, 1, 2, 0, 3), strict=True):
        write_image(path, number)
    names = output_names([str(path) for path in reversed(paths)])
    got = [names[str(path)] for path in paths]
    assert got[0] == got[3] == "x.jpg"
    assert got[4] == "y_1.jpg"
    assert len({name.lower() for name in got}) == 4
    for name, letter in zip(got[1:3], "xX", strict=True):
        assert len(name) == len("x-01234567.jpg")
        assert name.startswith(f"{letter}-")


def test_copies_links_and_boxes(tmp_path):
    write_image(tmp_path / "a.jpg", exif=6)
    (tmp_path / "images").mkdir()
    source = str(tmp_path / "a.jpg")
    write_images([(source, "copy.jpg", None), (source, "box.jpg", (10, 20, 30, 40))], tmp_path, False)
    write_images([(source, "link.jpg", None)], tmp_path, True)
    assert sorted(os.listdir(tmp_path / "images")) == ["box.jpg", "copy.jpg", "link.jpg"]
    assert (tmp_path / "images/copy.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    assert os.path.realpath(tmp_path / "images/link.jpg") == os.path.realpath(source)
    drawn, plain = load_image(tmp_path / "images/box.jpg"), load_image(source)
    assert drawn.shape == plain.shape
    difference = np.abs(drawn.astype(int) - plain).sum(-1)
    assert difference[15:18, 5:35].mean() > 2 * difference[50:].mean()
    assert boxed_name("a.jpg", (1, 2, 3, 4)) != boxed_name("a.jpg", (1, 2, 3, 5))
    assert boxed_name("a.webp", (1, 2, 3, 4)).endswith(".png")


def test_the_box_is_five_pixels_around_and_inside_the_picture():
    picture = Image.new("RGB", (60, 40))
    draw_box(picture, (20, 15, 30, 25))
    red = np.asarray(picture)[..., 0] == 255
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert (columns[0], rows[0], columns[-1], rows[-1]) == (15, 10, 34, 29)
    assert not red[13:27, 18:32].any()
    draw_box(picture, (0, 0, 60, 40))
    assert (np.asarray(picture)[0, :, 0] == 255).all()
