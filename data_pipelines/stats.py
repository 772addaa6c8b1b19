"""`plum data stats`: what a data set holds: objects, parts, masks and their sizes, questions, how alike their choices are."""

import collections
import json
import warnings
from pathlib import Path

import numpy as np

from data_pipelines.checks.categories import meanings
from data_pipelines.checks.coco import LAYOUT as COCO_LAYOUT
from data_pipelines.checks.coco import CocoFile
from data_pipelines.checks.families import SPLITS, open_family
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.options import check_flags
from data_pipelines.checks.partonomy import LAYOUT, instance_key
from data_pipelines.checks.pictures import pick
from data_pipelines.checks.targets import find_target
from data_pipelines.folders import identity, image_size
from data_pipelines.json_array import scan, scan_object
from data_pipelines.masks import encode_coco, segmentation_area
from data_pipelines.partonomy.records import parse_question
from data_pipelines.statistics import Statistics
from plum_jax import cli
from plum_jax.errors import UserError


def main(argv=None):
    parser = cli.Parser(prog="plum data stats", description=__doc__)
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a folder of questions, a root of training data sets (docs/data), or COCO files",
    )
    add("--hierarchy", type=Path, metavar="FILE", help="for COCO files: YAML {object: [part categories]}")
    add("--max", type=int, default=500, metavar="N", help="of a root: samples drawn from each data set (default: 500)")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args(argv)
    check_flags(arguments)
    report = describe(find_target(arguments.paths), hierarchy=arguments.hierarchy, most=arguments.max)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        from data_pipelines.stats_text import as_text

        print(as_text(report))
    return 0


def describe(target, *, hierarchy=None, most=500):
    """-> {"folder", "kind", "files": {name: summary of `Statistics`}}, for a root "datasets": {name: {split: ...}}.

    UserError where a file cannot be read: plum data check finds all that is wrong.
    """
    report = {"folder": str(target.folder), "kind": target.kind}
    if target.kind == "questions":
        report["files"] = {path.name: _questions(path).summary() for path in target.files}
    elif target.kind == "coco":
        if hierarchy is not None:
            from data_pipelines.partonomy.categories import read_hierarchy

            hierarchy = read_hierarchy(hierarchy)
        report["files"] = {path.name: _coco(path, hierarchy).summary() for path in target.files}
    else:
        report["datasets"] = {name: _family(target.folder, name, most) for name in target.datasets}
    return report


def _questions(path):
    """Questions and, each once, the objects that they are about."""
    from plum_jax.console import Progress

    statistics, seen = Statistics(), set()
    with Progress(total=path.stat().st_size, label=path.name, unit="B") as bar:
        for index, (start, stop, entry) in enumerate(scan(path, LAYOUT)):
            bar.update(stop - start)
            try:
                question = parse_question(entry, path, index)
            except UserError:
                statistics.left_out["entry that is no question"] += 1
                continue
            statistics.add_question(question)
            key = instance_key(question)
            if key in seen:
                continue
            seen.add(key)
            areas, unreadable = [], 0
            for masks in question.segmentations.values():
                for mask in masks:
                    try:
                        (height, width), area = segmentation_area(mask)
                        areas.append(area / (height * width))
                    except ValueError:
                        unreadable += 1
            statistics.add_object(question.image_path, question.image_label, question.segmentations, areas, unreadable)
    return statistics


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


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
