"""PACO-LVIS, PASCAL-Part, PartImageNet and other COCO files -> descriptor (D 2): one instance per object class and image."""

import collections

from pycocotools import mask as coco_mask

from data_pipelines.partonomy import categories as meaning
from data_pipelines.partonomy.coco_file import read_coco, regions
from data_pipelines.partonomy.descriptor import Descriptor, Instance
from data_pipelines.partonomy.labels import OBJECT, join
from data_pipelines.partonomy.matching import best_match, match
from plum_jax.errors import UserError

COCO_FORMATS = ("paco_lvis", "pascal_part", "partimagenet", "coco")


def convert_coco(path, source, *, hierarchy=None, progress=None):
    """A COCO annotation file -> (Descriptor, Counter of what was left out, by reason).

    Args:
      source: of COCO_FORMATS, what its category names mean.
      hierarchy: of `read_hierarchy`, for "coco".
      progress: called with an iterable of the images, and returns it.
    """
    coco, counts = read_coco(path), collections.Counter()
    options = {"hierarchy": hierarchy} if source == "coco" else {}
    categories = getattr(meaning, source)(path, coco, **options)
    by_image = collections.defaultdict(list)
    known = {image["id"] for image in coco["images"]}
    for annotation in coco["annotations"]:
        if annotation["image_id"] in known:
            by_image[annotation["image_id"]].append(annotation)
        else:
            counts["annotation of an unknown image"] += 1
    instances = []
    images = sorted(coco["images"], key=lambda image: (image["file_name"], image["id"]))
    for image in progress(images) if progress else images:
        found = regions(by_image[image["id"]], (image["height"], image["width"]), categories, counts)
        instances += [_instance(image["file_name"], *item) for item in _classes(*found, counts)]
    if not instances:
        raise UserError(f"{path}: holds no part annotation that can be used ({_reasons(counts)}); check --format and the file")
    part_graph = {}
    for category in categories.values():
        for thing in category.objects:
            parts = part_graph.setdefault(OBJECT + thing, set())
            parts.update([join(thing, category.part)] if category.part else [])
    part_graph = {thing: sorted(parts) for thing, parts in sorted(part_graph.items())}
    return Descriptor(source, tuple(instances), part_graph, _siblings(coco, source, categories)), +counts


def _reasons(counts):
    return ", ".join(f"{number} times {reason}" for reason, number in counts.most_common()) or "it has none"


def _classes(objects, parts, crowds, counts):
    """Yields (object class, Match, whether the image shows other objects of the class), one per class, sorted."""
    by_class = {}
    for things, regions_of_parts in parts.items():
        if len(things) == 1:
            by_class.setdefault(things[0], []).extend(regions_of_parts)
            continue
        thing_of = {region.id: thing for thing in things for region in objects.get(thing, ())}
        candidates = [region for thing in things for region in objects.get(thing, ())]
        # A part of any of several objects: an object that it does not touch does not have it, be it the only one.
        matches, lost = match(candidates, regions_of_parts, lone_takes_all=False) if candidates else ([], regions_of_parts)
        for found in matches:
            by_class.setdefault(thing_of[found.object.id], []).extend(found.parts)
        counts["part of any of several objects that lies on none of them"] += len(lost)
    for thing in sorted(by_class):
        whole = objects.get(thing, [])
        if not whole and crowds[thing]:
            counts["part of an object that is annotated as a crowd only"] += len(by_class[thing])
            continue
        matches, lost = match(whole, sorted(by_class[thing], key=lambda region: region.id))
        counts["part that lies on no object of its class"] += len(lost)
        if matches:
            counts["further object of the same class, not asked about"] += len(matches) - 1
            yield thing, best_match(matches), len(whole) + crowds[thing] > 1 or len(matches) > 1


def _instance(file_name, thing, found, ambiguous):
    segmentations = {OBJECT + thing: [found.object.rle]} if found.object else {}
    for region in found.parts:
        segmentations.setdefault(join(thing, region.name), []).append(region.rle)
    box = None
    if ambiguous:
        rle = found.object.rle if found.object else coco_mask.merge([region.rle for region in found.parts])
        x, y, width, height = (int(v) for v in coco_mask.toBbox(rle))
        box = (x, y, x + width, y + height)
    pooled = found.object is None and found.parts[0].owner is None
    return Instance(file_name, OBJECT + thing, segmentations, highlight_box=box, multi_instance_possible=pooled)


def _siblings(coco, source, categories):
    """{parent: objects}: by supercategory where a COCO file gives every object one, else all are siblings."""
    things = sorted({thing for category in categories.values() for thing in category.objects})
    above = {}
    for entry in coco["categories"]:
        category = categories.get(entry["id"])
        if category and category.part is None and isinstance(entry.get("supercategory"), str):
            above[category.objects[0]] = entry["supercategory"]
    if source != "coco" or above.keys() != set(things):
        return {"object": [OBJECT + thing for thing in things]}
    graph = collections.defaultdict(list)
    for thing in things:
        graph[above[thing]].append(OBJECT + thing)
    return dict(graph)
