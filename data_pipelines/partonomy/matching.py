"""Which object of an image a part annotation belongs to (D 2.1), on run lengths: areas are whole numbers of any size (D1)."""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

THRESHOLD = 0.1  # share of a part's pixels that must lie on its object


@dataclasses.dataclass(frozen=True)
class Region:
    """One annotation with a mask that is not empty."""

    id: int
    name: str  # of the object class, or of the part
    rle: dict  # {"size", "counts"}
    owner: int | None = None  # id of the object, where the source says it


@dataclasses.dataclass(frozen=True)
class Match:
    """An object with its parts. No object: the source has none, and the parts may be of several."""

    object: Region | None
    parts: tuple[Region, ...]

    @property
    def object_area(self):
        return 0 if self.object is None else int(coco_mask.area(self.object.rle))


def containment(parts, objects):
    """float64[parts, objects]: share of the pixels of each part that lie on each object."""
    if not parts or not objects:
        return np.zeros((len(parts), len(objects)))
    # With iscrowd the COCO library divides the intersection by the area of the first argument.
    return coco_mask.iou([p.rle for p in parts], [o.rle for o in objects], [1] * len(objects))


def match(objects, parts, *, lone_takes_all=True, threshold=THRESHOLD):
    """Objects and parts in one image -> ([Match], [parts without an object]).

    Without objects, the parts of one owner form a match (all of them, where the source names no owners: D3). Otherwise:
    1. A part with an owner belongs to that object.
    2. Of the others all belong to the object if there is one only (with `lone_takes_all`), else to that which contains most
       of them: at least `threshold` of the part, of equal shares the smaller object.
    An object without parts makes no match.
    """
    if not objects:
        groups = {}
        for part in parts:
            groups.setdefault(part.owner, []).append(part)
        return [Match(None, tuple(group)) for group in groups.values()], []
    number = {thing.id if thing.owner is None else thing.owner: k for k, thing in enumerate(objects)}
    found, lost = [[] for _ in objects], []
    areas = coco_mask.area([thing.rle for thing in objects]).astype(np.int64)
    for part, shares in zip(parts, containment(parts, objects), strict=True):
        if part.owner is not None:
            best = number.get(part.owner)
        elif lone_takes_all and len(objects) == 1:
            best = 0
        else:
            best = min(range(len(objects)), key=lambda k, shares=shares: (-shares[k], areas[k], objects[k].id))
            best = best if shares[best] >= threshold else None
        (lost if best is None else found[best]).append(part)
    return [Match(thing, tuple(group)) for thing, group in zip(objects, found, strict=True) if group], lost


def best_match(matches):
    """The match with the most parts, of those with equally many the one with the largest object (D 2.2)."""
    return min(matches, key=lambda m: (-len(m.parts), -m.object_area, m.object.id if m.object else m.parts[0].id))
