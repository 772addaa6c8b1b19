"""COCO annotation files: reading and checking one, and the regions of an image in the words of objects and parts (D 2)."""

import collections
import dataclasses

from pycocotools import mask as coco_mask

from data_pipelines.folders import read_json
from data_pipelines.masks import MOST_PIXELS, encode_coco
from data_pipelines.partonomy.matching import Region
from plum_jax.errors import UserError

FIELDS = {  # of a COCO file -> of each entry: its type
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
OWNER = ("obj_ann_id", "instance_id")  # PACO: id of the object's annotation; elsewhere any number that its parts share


@dataclasses.dataclass(frozen=True)
class Category:
    """What a category means: an object, a part of one, or a part of any of several (one of which an image shows)."""

    objects: tuple[str, ...]
    part: str | None = None


def read_coco(path):
    """COCO JSON as a dictionary. UserError names the first entry that is wrong, its field and the fix."""
    value = read_json(path, "give the path of a COCO annotation file", repair="give a COCO annotation file")
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in FIELDS):
        raise UserError(f"{path}: has no lists images, annotations and categories; give a COCO annotation file")
    for key, fields in FIELDS.items():
        for number, entry in enumerate(value[key]):
            for field, kind in fields.items():
                if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
                    shown = repr(entry.get(field))[:60] if isinstance(entry, dict) else type(entry).__name__
                    words = "whole number" if kind is int else "text"
                    raise UserError(f"{path}: {key}[{number}]: {field} is {shown}; give a {words}")
    for key in FIELDS:
        ids = collections.Counter(entry["id"] for entry in value[key])
        if ids and max(ids.values()) > 1:
            twice = min(key for key, count in ids.items() if count > 1)
            raise UserError(f"{path}: {key}: id {twice} occurs {ids[twice]} times; give every entry its own id")
    for number, image in enumerate(value["images"]):
        if not 0 < image["height"] * image["width"] <= MOST_PIXELS or image["height"] < 1:
            raise UserError(
                f"{path}: images[{number}]: is {image['height']} x {image['width']}; give the image's height and width"
            )
    return value


def regions(annotations, hw, categories, counts):
    """Annotations of one image -> ({object: [Region]}, {objects that it may belong to: [part Region]}, Counter of crowds).

    Annotations of unknown categories, crowds, broken and empty masks are left out and counted by reason in `counts`.
    """
    objects, parts, crowds = collections.defaultdict(list), collections.defaultdict(list), collections.Counter()
    for annotation in sorted(annotations, key=lambda entry: entry["id"]):
        category = categories.get(annotation["category_id"])
        if category is None:
            counts["annotation of a category that is neither an object with parts nor a part"] += 1
            continue
        if annotation.get("iscrowd"):
            counts["crowd annotation"] += 1
            crowds[category.objects[0]] += category.part is None
            continue
        try:
            rle = encode_coco(annotation.get("segmentation"), hw)
        except ValueError:
            counts["annotation with a malformed mask"] += 1
            continue
        if not coco_mask.area(rle):
            counts["annotation with an empty mask"] += 1
            continue
        owner = next((annotation[field] for field in OWNER if type(annotation.get(field)) is int), None)
        region = Region(annotation["id"], category.part or category.objects[0], rle, owner)
        if category.part is None:
            objects[category.objects[0]].append(region)
        else:
            parts[category.objects].append(region)
    return objects, parts, crowds
