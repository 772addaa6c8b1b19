"""What COCO files of parts and the training data sets hold: objects, parts, masks and their sizes."""

import collections
import warnings

import numpy as np

from data_pipelines.checks.categories import meanings
from data_pipelines.checks.coco import LAYOUT as COCO_LAYOUT
from data_pipelines.checks.coco import CocoFile
from data_pipelines.checks.families import SPLITS, open_family
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.pictures import pick
from data_pipelines.folders import identity, image_size
from data_pipelines.json_array import scan_object
from data_pipelines.masks import encode_coco, segmentation_area
from data_pipelines.part_statistics import Statistics
from plum_jax.errors import UserError


def describe(target, *, hierarchy=None, most=500):
    """Target of kind "coco" -> {"folder", "kind", "files": {name: summary of `Statistics`}}, "root" -> {..., "datasets": {name:
    {split: counts, and those of at most `most` samples}}}.

    UserError where a file cannot be read: plum data check finds all that is wrong.
    """
    report = {"folder": str(target.folder), "kind": target.kind}
    if target.kind == "coco":
        if hierarchy is not None:
            from data_pipelines.partonomy.categories import read_hierarchy

            hierarchy = read_hierarchy(hierarchy)
        report["files"] = {path.name: _coco(path, hierarchy).summary() for path in target.files}
    else:
        report["datasets"] = {name: _family(target.folder, name, most) for name in target.datasets}
    return report


def _coco(path, hierarchy):
    """Annotations of parts; the parts of an object of one name in an image count as one object."""
    from pycocotools import mask as coco_mask

    statistics, file = Statistics(), CocoFile(path, path.name)
    for field, value in scan_object(path, COCO_LAYOUT):
        number = identity(value, "id") if isinstance(value, dict) else None
        if number is not None and field == "images" and image_size(value):
            file.images[number] = value.get("file_name"), image_size(value)
        elif number is not None and field == "categories" and isinstance(value.get("name"), str):
            file.categories[number] = value
    file.labels = meanings(file, hierarchy, None, Findings())
    found = collections.defaultdict(lambda: ([], [], []))  # {(image id, object): (parts, areas, unreadable)}
    for field, value in scan_object(path, COCO_LAYOUT):
        if field != "annotations" or not isinstance(value, dict):
            continue
        label, image = file.labels.get(identity(value, "category_id")), identity(value, "image_id")
        if label is None or image not in file.images:
            statistics.left_out["annotation of an unknown image or of a category without an object"] += 1
        elif value.get("iscrowd"):
            statistics.left_out["crowd annotation"] += 1
        else:
            parts, areas, unreadable = found[image, label[0]]
            parts += [label[1]] if label[1] is not None else []
            hw = file.images[image][1]
            try:
                areas.append(int(coco_mask.area(encode_coco(value.get("segmentation"), hw))) / (hw[0] * hw[1]))
            except ValueError:
                unreadable.append(identity(value, "id"))
    for (image, thing), (parts, areas, unreadable) in found.items():
        statistics.add_object(image, thing, parts, areas, len(unreadable))
    return statistics


def _family(root, name, most):
    """{split: {"records", "left_out", and of at most `most` samples: "dialogues", "spans", "masks", "mask_area"}}."""
    found = {}
    for split in SPLITS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = open_family(root, name, split)
        except UserError as error:
            found[split] = {"problem": str(error)}
            continue
        found[split] = {"records": len(source), "left_out": dict(source.skipped), **_drawn(source, name, most)}
    return found


def _drawn(source, name, most):
    from plum_jax.console import Progress

    statistics, counts = Statistics(), collections.Counter()
    for index in Progress(pick(range(len(source)), most), label=name, unit="sample"):
        try:
            sample = source.sample(index, np.random.default_rng([0, index]))
            areas = [_area(mask) for mask in sample.masks]
        except (UserError, ValueError):
            counts["unreadable"] += 1
            continue
        counts["samples"] += 1
        counts["dialogues"] += len(sample.dialogues)
        counts["turns"] += sum(len(dialogue.turns) for dialogue in sample.dialogues)
        names = []
        for dialogue in sample.dialogues:
            names += [dialogue.turns[span.turn][1][span.char_start : span.char_end] for span in dialogue.spans]
        counts["spans"] += len(names)
        statistics.add_object(sample.key, name, names if sample.family == "semantic" else (), areas)
    summary = statistics.summary()
    kept = {key: summary[key] for key in ("masks", "masks_per_image", "mask_area", "by_part")}
    return {"drawn": {key: counts[key] for key in ("samples", "unreadable", "dialogues", "turns", "spans")}, **kept}


def _area(mask):
    if isinstance(mask, dict):
        (height, width), area = segmentation_area(mask)
        return area / (height * width)
    return float(np.mean(np.asarray(mask) != 0))
