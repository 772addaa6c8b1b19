"""Numbered examples of a split: scene, picture file and masks, from (seed, split, index) alone."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.synthetic.objects import OBJECTS
from data_pipelines.synthetic.render import render
from data_pipelines.synthetic.scenes import SPLITS, sample_scene

SCENE, PICTURE_FILE, QUESTIONS = range(3)  # streams of random numbers
ATTEMPTS = 100  # scenes that are drawn until one keeps to the rules
PNG_SHARE, TURNED_SHARE = 0.04, 0.04  # of the pictures: PNG files, and JPEG files that need their EXIF orientation
JPEG_OPTIONS = dict(quality=93, subsampling=0)
ORIENTATIONS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}  # tag -> its inverse
HELD_OUT = {kind.name: kind.held_out for kind in OBJECTS if kind.held_out}


def generator(seed, split, index, *stream):
    """The random numbers of one example; every `stream` of it has its own."""
    return np.random.default_rng([seed, SPLITS.index(split), index, *stream])


def make_instance(seed, split, index, image_size, difficulty):
    """-> (label, picture uint8[H, W, 3], {part: [mask uint8[H, W], ...]}).

    A part of which too little would be visible is left out of the picture, so that what is in it and what is not is never a
    matter of a few pixels.
    """
    held_out = HELD_OUT if split == "heldout" else {}
    for attempt in range(ATTEMPTS):
        without = ()
        for _ in range(2):  # the second time without the parts that were too small, everything else being the same
            rng = generator(seed, split, index, SCENE, attempt)
            scene = sample_scene(index, split, rng, image_size, difficulty, without)
            picture, masks = render(scene)
            without = too_small(masks, difficulty.smallest_part)
            if len(without) in (0, len(masks)):
                break
        if len(masks) >= 2 and not without and masks.keys() >= set(held_out.get(scene.label, ())):
            return scene.label, picture, masks
    raise RuntimeError(f"no scene in {ATTEMPTS} attempts has parts of {difficulty.smallest_part:.1%} of the picture or more")


def too_small(masks, smallest):
    return [part for part, entries in masks.items() if sum(int(m.sum()) for m in entries) < smallest * entries[0].size]


def save_picture(picture, stem, rng):
    """Writes uint8[H, W, 3] to `stem` + .jpg or .png, a few JPEGs turned with the EXIF tag that turns them back -> path."""
    draw = rng.random()
    if draw < PNG_SHARE:
        path = stem.with_suffix(".png")
        Image.fromarray(picture).save(path, compress_level=4)
        return path
    path = stem.with_suffix(".jpg")
    image, options = Image.fromarray(picture), dict(JPEG_OPTIONS)
    if draw < PNG_SHARE + TURNED_SHARE:
        tag = sorted(ORIENTATIONS)[rng.integers(len(ORIENTATIONS))]
        image = image.transpose(ORIENTATIONS[tag])
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = tag
    image.save(path, **options)
    return path


def encode_masks(masks):
    """{part: [uint8[H, W], ...]} -> JSON text of {part: [compressed COCO RLE, ...]}, parts sorted (D 1.3)."""
    parts = sorted(masks)
    entries = [mask for part in parts for mask in masks[part]]
    encoded = iter(coco_mask.encode(np.asfortranarray(np.stack(entries, -1))))

    def entry():
        rle = next(encoded)
        return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}

    return json.dumps({part: [entry() for _ in masks[part]] for part in parts})
