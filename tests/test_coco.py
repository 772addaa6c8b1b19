"""What is written loads in pycocotools, and the overlay shows the masks."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
from pycocotools.coco import COCO

from plum_jax import coco, overlay


def span(phrase, mask, score=0.7, status="ok", at=0):
    return SimpleNamespace(phrase=phrase, char_start=at, char_end=at + len(phrase), mask=mask, score=score, status=status)


def answer(hw=(40, 60)):
    left, right = np.zeros(hw, bool), np.zeros(hw, bool)
    left[5:20, 3:13], right[30:, 50:] = True, True
    spans = [span("Wheel", left), span("door", right, 0.4), span("lid", np.zeros(hw, bool), 0.0, "empty_mask")]
    spans.append(span("tail", right, 0.01, "low_confidence"))
    image = np.full((*hw, 3), 90, np.uint8)
    return SimpleNamespace(image=image, prompt="What parts?", text="Wheel, door, lid, tail.", status="ok", spans=spans)


def test_rle_round_trip():
    mask = np.random.default_rng(0).random((13, 7)) > 0.5
    np.testing.assert_array_equal(coco.decode(coco.encode(mask)), mask)
    np.testing.assert_array_equal(coco.decode(coco.encode(mask.astype(np.uint8))), mask)


def test_document_loads_in_pycocotools(tmp_path):
    records = [coco.record("a/1.png", answer()), coco.record("a/2.png", answer((20, 30)))]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco.document(records)))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(path))
    assert [c["name"] for c in loaded.loadCats(loaded.getCatIds())] == ["door", "wheel"]
    assert len(loaded.getAnnIds(imgIds=[1])) == 2  # the empty and the refused mask are only in predictions.json
    first = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))[0]
    np.testing.assert_array_equal(loaded.annToMask(first), answer().spans[0].mask)
    assert first["bbox"] == [3.0, 5.0, 10.0, 15.0] and first["area"] == 150
    assert first["phrase"] == "Wheel" and first["char_span"] == [0, 5] and first["status"] == "ok" and first["score"] == 0.7
    assert [s["status"] for s in records[0]["spans"]] == ["ok", "ok", "empty_mask", "low_confidence"]


def test_overlay_colours_the_masks_and_lists_the_phrases():
    said = answer()
    picture = overlay.draw(said.image, said.spans[:2], title=said.prompt, text=said.text)
    pixels = np.asarray(picture)
    scale = overlay.SMALLEST / 60
    inside = pixels[int(12 * scale), int(8 * scale)].astype(int)
    assert np.abs(inside - (np.array(overlay.colour(0)) + 90) / 2).max() <= 2
    assert (pixels[int(20 * scale), int(30 * scale)] == 90).all()  # outside of all masks
    assert picture.height > 40 * scale  # room for the legend
    overlay.draw(said.image, [])  # nothing tagged is drawn too


def test_overlay_of_a_large_photograph_is_bounded():
    image = np.zeros((2100, 900, 3), np.uint8)
    picture = overlay.draw(image, [span("wheel", np.ones((2100, 900), bool))])
    assert picture.width <= overlay.LARGEST and picture.height <= overlay.LARGEST * 1.3
