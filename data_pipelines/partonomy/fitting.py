"""Masks against the pictures they belong to: readable, upright, of the same size, not empty (D 1.3, D16)."""

import collections
import dataclasses

import numpy as np
from PIL import Image

from data_pipelines.images import load_image
from data_pipelines.masks import MOST_PIXELS, decode_segmentation, encode_rle, rle_area
from plum_jax.errors import UserError

ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {  # orientation -> how the stored array becomes the upright one, for those that exchange height and width
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}
MISMATCH = ("drop", "nearest", "error")


def fit_image(folder, instances, mismatch="drop"):
    """The instances of one image -> (those that can be used, Counter of reasons for what is left out or changed).

    Every mask becomes {"size", "counts": str} of the upright image's size. A mask of the size of the stored, rotated picture
    is rotated with it. Another size: the instance is left out ("drop"), its masks are resized ("nearest"), or UserError
    ("error"). Empty masks are removed; with a malformed one the instance goes, as its answer would not be complete.
    """
    path, counts = folder / instances[0].image_path, collections.Counter()
    try:
        hw = load_image(path).shape[:2]
    except UserError:
        counts["image not readable" if path.is_file() else "image not found"] += len(instances)
        return [], counts
    fitted = []
    for instance in instances:
        try:
            masks, box = _fit_masks(instance, path, hw, mismatch, counts)
        except _Unusable as reason:
            counts[str(reason)] += 1
            continue
        if masks:
            fitted.append(dataclasses.replace(instance, segmentations=masks, highlight_box=box))
        else:
            counts["instance with empty masks only"] += 1
    return fitted, counts


class _Unusable(Exception):
    """Why an instance cannot be used."""


def _fit_masks(instance, path, hw, mismatch, counts):
    """-> ({label: run lengths of the upright size, none empty}, highlight box)."""
    masks, box = {}, instance.highlight_box
    for label, entries in instance.segmentations.items():
        for entry in entries:
            try:
                rle, area = _run_lengths(entry)
            except ValueError as error:
                raise _Unusable("instance with a malformed mask") from error
            if not area:
                counts["empty mask"] += 1
                continue
            size = tuple(rle["size"])
            if size != hw:
                turn = UPRIGHT.get(_orientation(path)) if size == hw[::-1] else None
                counts["mask rotated with its image" if turn else "mask resized to its image"] += 1
                rle = encode_rle(turn(decode_segmentation(rle)) if turn else _resize(rle, path, hw, mismatch))
                if turn and instance.highlight_box:
                    box = _turn_box(instance.highlight_box, size, turn)
            masks.setdefault(label, []).append(rle)
    return masks, box


def _run_lengths(entry):
    """Entry of D 1.3 -> ({"size", "counts": str}, area). Compressed run lengths stay as they are. ValueError when malformed."""
    inner = entry.get("segmentation", entry) if isinstance(entry, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("counts"), str):
        size = inner.get("size")
        if isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= MOST_PIXELS for side in size):
            return {"size": size, "counts": inner["counts"]}, rle_area(inner["counts"], size)
    mask = decode_segmentation(entry)
    return encode_rle(mask), int(mask.sum())


def _orientation(path):
    with Image.open(path) as image:
        return image.getexif().get(ORIENTATION, 1)


def _resize(rle, path, hw, mismatch):
    """Mask array of the size of the image; `_Unusable` or UserError where the user wants that instead."""
    if mismatch == "nearest":
        return np.asarray(Image.fromarray(decode_segmentation(rle)).resize(hw[::-1], Image.Resampling.NEAREST))
    if mismatch == "error":
        what = f"{path}: has a mask of {rle['size'][0]} x {rle['size'][1]}, the upright image is {hw[0]} x {hw[1]}"
        raise UserError(f"{what}; give the images that were annotated, or --mismatched-masks drop")
    raise _Unusable("instance with a mask of another size than its image")


def _turn_box(box, size, turn):
    x0, y0, x1, y1 = box
    inside = np.zeros(size, bool)
    inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
    rows, columns = (np.flatnonzero(turn(inside).any(axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
