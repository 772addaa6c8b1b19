"""Small folders of the training data sets in their real layouts and formats, and what every sample must satisfy."""

import json
import pickle

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.record import FAMILIES, NO_MASK

HW = (40, 60)  # of every image; not square, so that swapped axes show


def write_image(path, hw=HW, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_labels(path, labels, palette=False):
    """uint8[H, W] as the PNG of a label map; with a palette as Mapillary's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_pickle(path, content, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def blocks(*values):
    """uint8[H, W] of vertical stripes, one of each value, of equal width."""
    return np.repeat(np.array(values, np.uint8), HW[1] // len(values))[None].repeat(HW[0], 0)


def box(x0, y0, x1, y1):
    """A ring of four corners around the pixels x0 <= x < x1, y0 <= y < y1."""
    return [float(n) for n in (x0, y0, x1, y0, x1, y1, x0, y1)]


def box_mask(*boxes):
    mask = np.zeros(HW, np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 1
    return mask


def run_lengths(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def coco(images, annotations, categories=()):
    """File names, (image, category, segmentation[, more]) and category dictionaries -> COCO content with ids from 1."""
    return {
        "info": {"description": "written by a test"},
        "images": [{"id": i, "file_name": name, "height": HW[0], "width": HW[1]} for i, name in enumerate(images, 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "segmentation": s, "iscrowd": 0, **dict(*more)}
            for i, (image, category, s, *more) in enumerate(annotations, 1)
        ],
        "categories": [{"id": i, **category} for i, category in enumerate(categories, 1)],
    }


def check_sample(sample):
    """What a `Sample` of an image must satisfy. -> {text under each span: its mask}."""
    assert sample.family in FAMILIES
    assert sample.dialogues
    named = {}
    for dialogue in sample.dialogues:
        assert dialogue.turns[0][0].startswith("<image>\n")
        assert len(dialogue.spans) == len(dialogue.masks)
        for span, index in zip(dialogue.spans, dialogue.masks, strict=True):
            answer = dialogue.turns[span.turn][1]
            text = answer[span.char_start : span.char_end]
            assert text
            assert text == text.strip()
            assert index != NO_MASK
            assert 0 <= index < len(sample.masks)
            named[text] = sample.masks[index]
    for mask in sample.masks:
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert mask.any()
        assert mask.shape == Image.open(sample.image).size[::-1]
    return named


def same(one, other):
    """Whether two samples are equal, masks included."""
    equal = (one.key, one.image, one.dialogues) == (other.key, other.image, other.dialogues)
    return equal and all(np.array_equal(a, b) for a, b in zip(one.masks, other.masks, strict=True))
