"""`plum data check FILE.json --images DIR`: every fault of a COCO file of parts and of its images."""

import collections
import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from data_pipelines.checks.findings import Findings, image_size
from data_pipelines.folders import inside
from data_pipelines.masks import MOST_PIXELS, encode_coco
from data_pipelines.naming import normalise
from data_pipelines.partonomy import categories as meanings
from plum_jax import cli
from plum_jax.console import progress
from plum_jax.errors import UserError

THREADS = 4  # that read images
EDGES = (0.0, 0.001, 0.01, 0.04, 0.16, 1.0)  # of the share of the image that a mask covers
LISTS = ("images", "annotations", "categories")
ADVICE = "use --hierarchy parts.yaml or name it 'object:part'"


def main(argv):
    """Exit status 0: fine or warnings only, 1: errors, 2 (UserError): nothing to check."""
    parser = cli.Parser(prog="plum data check", description="Check a COCO file of parts and its images.")
    parser.add_argument("file", help="COCO annotation file")
    parser.add_argument("--images", required=True, help="folder that its file names start from")
    parser.add_argument("--hierarchy", help="YAML {object: [part categories]}; default: categories are named object:part")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    path, folder, found = Path(arguments.file), Path(arguments.images), Findings()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a COCO annotation file")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give --images the folder of the images")
    hierarchy = meanings.read_hierarchy(arguments.hierarchy) if arguments.hierarchy else None
    content = _read(path, found)
    if content is None:
        return found.finish({"file": str(path)}, [str(path)], arguments.json)
    if not content["annotations"] and not content["images"]:
        raise UserError(f"{path}: has no image and no annotation; there is nothing to check")
    _check_categories(path, content, hierarchy, found)
    _check_images(path, folder, content, found)
    areas = _check_annotations(path, content, found)
    numbers = {"file": str(path), **_numbers(path, content, hierarchy, areas)}
    lines = [f"{key}: {value}" for key, value in numbers.items()]
    return found.finish(numbers, lines, arguments.json)


def _read(path, found):
    """COCO content with only its entries that are objects with a whole id, or None; what is wrong goes to `found`."""

    def pairs(items):
        names = collections.Counter(name for name, _ in items)
        for name, count in names.items():
            if count > 1:
                found.error(path, None, f"key {name!r} occurs {count} times in one object; keep one, the others are lost")
        return dict(items)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs)
    except RecursionError:
        return found.error(path, None, "is nested too deeply; write the file again")
    except UnicodeDecodeError as error:
        return found.error(path, None, f"is not UTF-8 ({error.reason}); write the file again as UTF-8")
    except (OSError, ValueError) as error:
        return found.error(path, None, f"not readable as JSON ({error}); write the file again")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in LISTS):
        return found.error(path, None, "has no lists images, annotations and categories; give a COCO annotation file")
    return {key: _entries(path, key, content[key], found) for key in LISTS}


def _entries(path, key, entries, found):
    good, seen = [], set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            found.error(path, None, f"{key}[{number}] is no object with a whole number as id; give it one")
        elif entry["id"] in seen:
            found.error(path, entry["id"], f"id occurs more than once in {key}; give every entry its own")
        else:
            seen.add(entry["id"])
            good.append(entry)
    return good


def _check_categories(path, content, hierarchy, found):
    names, seen = [], {}
    for entry in content["categories"]:
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            found.error(path, entry["id"], "category has no name; give it one")
            continue
        names.append((entry["id"], name))
        other = seen.setdefault(normalise(name), name)
        if other is not name:
            found.error(path, entry["id"], f"category {name!r} has the same normalised name as {other!r}; rename or merge them")
    if hierarchy is None:
        owners = {normalise(name.split(":")[0]) for _, name in names if ":" in name}
    else:
        owners = {normalise(name) for thing, parts in hierarchy.items() for name in (thing, *parts)}
    for number, name in names:
        if (hierarchy is not None or ":" not in name) and normalise(name) not in owners:
            found.error(path, number, f"category {name!r} has no parent object; {ADVICE}")
    try:
        meanings.coco(path, {"categories": [{"id": i, "name": name} for i, name in names]}, hierarchy)
    except UserError as error:
        found.error(path, None, str(error).removeprefix(f"{path}: "))


def _check_images(path, folder, content, found):
    owned = {a.get("image_id") for a in content["annotations"] if type(a.get("image_id")) is int}
    root, contents = folder.resolve(), {}

    def read(entry):
        place = folder / entry["file_name"]
        try:
            return image_size(place), hashlib.sha256(place.read_bytes()).hexdigest()
        except (UserError, OSError, MemoryError) as error:
            return str(error), None

    images = []
    for entry in content["images"]:
        if entry["id"] not in owned:
            found.warn(path, entry["id"], "image has no annotation")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name.strip():
            found.error(path, entry["id"], "image has no file_name; give it one")
        elif not inside(name):
            found.error(path, entry["id"], f"file_name {str(name)[:100]!r} leaves the folder of images; it was not opened")
        elif not Path(os.path.realpath(folder / name)).is_relative_to(root):  # resolve() raises on a link to itself
            found.error(path, entry["id"], f"{name}: is a symbolic link that leaves the folder of images; it was not opened")
        else:
            images.append(entry)
    with ThreadPoolExecutor(THREADS) as pool:
        for entry, (size, digest) in zip(images, progress(pool.map(read, images), len(images), "images"), strict=True):
            if digest is None:
                found.error(path, entry["id"], size)
                continue
            if size != (entry.get("height"), entry.get("width")):
                said = f"{entry.get('height')} x {entry.get('width')}"
                found.error(path, entry["id"], f"{entry['file_name']}: the upright image is {size[0]} x {size[1]}, not {said}")
            other = contents.setdefault(digest, entry["file_name"])
            if other != entry["file_name"]:
                found.warn(path, entry["id"], f"{entry['file_name']} is the same file as {other}")


def _check_annotations(path, content, found):
    """-> shares of the image that the masks cover, of those that can be decoded and hold a pixel."""
    images, areas = {entry["id"]: entry for entry in content["images"]}, []
    known = {entry["id"] for entry in content["categories"]}
    for annotation in content["annotations"]:
        number = annotation["id"]
        image, category = (annotation.get(key) for key in ("image_id", "category_id"))
        if type(category) is not int or category not in known:
            found.error(path, number, f"annotation of the unknown category {str(category)[:60]}")
        if type(image) is not int or image not in images:
            found.error(path, number, f"annotation of the unknown image {str(image)[:60]}")
            continue
        if annotation.get("iscrowd"):
            found.warn(path, number, "is a crowd annotation, which gives no question")
        hw = images[image].get("height"), images[image].get("width")
        if not all(type(side) is int and side > 0 for side in hw) or hw[0] * hw[1] > MOST_PIXELS:
            found.error(path, number, f"its image {image} has no usable height and width")
            continue
        fault = _polygon_fault(annotation.get("segmentation"), hw)
        if fault:
            found.error(path, number, fault)
            continue
        try:
            area = int(coco_mask.area(encode_coco(annotation.get("segmentation"), hw)))
        except (ValueError, OverflowError) as error:
            found.error(path, number, str(error))
            continue
        if area:
            areas.append(area / (hw[0] * hw[1]))
        else:
            found.error(path, number, "its mask is empty")
    return areas


def _polygon_fault(rings, hw):
    """What is wrong with a list of polygons, None where nothing is; other segmentations are left to `encode_coco`."""
    for ring in rings if isinstance(rings, list) else ():
        if not isinstance(ring, list) or not all(type(number) in (int, float) for number in ring):
            return None
        if any(isinstance(number, float) and not math.isfinite(number) for number in ring):
            return "polygon holds NaN or an infinite number"
        if len(ring) < 6:
            return f"polygon has {len(ring) // 2} points, needs at least 3"
        if min(ring) < 0 or max(ring[::2]) > hw[1] or max(ring[1::2]) > hw[0]:
            return f"polygon leaves the image of {hw[0]} x {hw[1]}"
    return None


def _numbers(path, content, hierarchy, areas):
    try:
        found = meanings.coco(path, content, hierarchy).values()
    except (UserError, KeyError, AttributeError, TypeError):
        found = ()  # said already
    parts = collections.Counter(thing for category in found if category.part for thing in category.objects)
    counts = np.histogram(areas, EDGES)[0].tolist()
    bins = [{"from": a, "to": b, "masks": n} for a, b, n in zip(EDGES, EDGES[1:], counts, strict=False)]
    return {**{key: len(content[key]) for key in LISTS}, "parts_per_object": dict(sorted(parts.items())), "mask_area": bins}
