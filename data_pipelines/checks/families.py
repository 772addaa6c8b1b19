"""The root of the training data sets: which of them are there, and each opened as a run opens it, counted and read."""

import os
import warnings
from pathlib import Path

import numpy as np

from data_pipelines.checks.coco import check_coco
from data_pipelines.checks.label_maps import check_label_maps
from data_pipelines.checks.pictures import pick, read_pictures
from data_pipelines.expected import EXPECTED, EXPECTED_ANNOTATIONS
from data_pipelines.images import load_image
from data_pipelines.kinds import KINDS
from data_pipelines.masks import decode_segmentation
from data_pipelines.sources import Entry, open_source
from plum_jax.errors import UserError

PLACES = {  # data set: what shows that it is meant to be there, below the root
    "ade20k": "ade20k",
    "cocostuff": "cocostuff",
    "mapillary": "mapillary",
    "paco_lvis": "vlpart/paco",
    "pascal_part": "vlpart/pascal_part",
    "partimagenet": "partimagenet/PartImageNet",
    "refclef": "refer_seg/refclef",
    "refcoco": "refer_seg/refcoco",
    "refcoco+": "refer_seg/refcoco+",
    "refcocog": "refer_seg/refcocog",
    "grefcoco": "refer_seg/grefcoco",
    "vqa": "llava_dataset",
    "reason": "reason_seg",
}
NAMES = {"vqa": "llava_instruct_150k", "reason": "reason_seg"}  # in EXPECTED
SPLITS = ("train", "val")
ERRORS = ("image file missing", "image of a phrase not in instances.json")  # reasons to leave a record out that are faults


def find_datasets(root):
    """Data sets of which at least the folder is there."""
    return [name for name, place in PLACES.items() if (Path(root) / place).is_dir()]


def check_families(root, names, findings, options):
    """-> {data set: {"splits": {split: counts}, "images": counts}}. What is wrong goes to `findings`."""
    root, found = Path(root), {}
    for name in names:
        splits, special = {}, list(_special_files(root / PLACES[name])) if name in PLACES else []
        for path in special:
            findings.error("pipe or device", name, None, f"{path}: is a pipe or device, which would never end; remove it")
        if special:
            found[name] = {"splits": splits, "images": {}}
            continue
        for split in [options.split] if options.split else SPLITS:
            counts = _open(root, name, split, findings, options)
            if counts is not None:
                splits[split] = counts
        images = _check_files(root, name, list(splits), findings, options)
        found[name] = {"splits": splits, "images": images}
    return found


def _special_files(folder):
    """Files below a folder that a reader of whole files would wait for."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if os.path.exists(path) and not os.path.isfile(path):
                yield path


def open_family(root, name, split="train"):
    """The Source of a data set, raw or built. UserError where its files are not as they should be."""
    return open_source(Entry(name, 1.0, str(root), split, {}), per_image=3)


def _open(root, name, split, findings, options):
    """Counts of a split; None where it cannot be opened, which is an error for the split that was asked for or training."""
    where = f"{name} {split}"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            source = open_family(root, name, split)
    except (UserError, OSError, RecursionError) as error:
        if split in ("train", options.split):
            findings.error("data set that cannot be opened", where, None, str(error))
        elif _is_there(root, name, split):
            findings.warning("data set that cannot be opened", where, None, str(error))
        return None
    for warning in said:
        findings.warning("remark", where, None, str(warning.message))
    for reason, count in source.skipped.items():
        note = findings.error if reason in ERRORS else findings.warning
        note("left out", where, None, f"{count:,} x {reason}")
    for key, _, message in getattr(source, "faults", ()):
        findings.warning("record left out", where, str(key), message)
    listed = getattr(source, "listed", len(source) + sum(source.skipped.values()))
    expected = EXPECTED.get(NAMES.get(name, name), {}).get(split)
    if expected is not None and listed != expected:
        text = f"{listed:,} records, the complete data set has {expected:,}"
        findings.warning("other count than the release", where, None, text)
    _check_samples(source, where, findings, options)
    return {"records": len(source), "listed": listed, "expected": expected, "left_out": dict(source.skipped)}


def _check_samples(source, where, findings, options):
    """Draws records as training does: each must give a sample whose masks have the size of its image."""
    for index in pick(range(len(source)), options.samples):
        try:
            sample = source.sample(index, np.random.default_rng([0, index]))
            if sample.image is None or not sample.masks:
                continue
            hw = load_image(sample.image).shape[:2]
            shapes = {decode_segmentation(mask).shape if isinstance(mask, dict) else mask.shape for mask in sample.masks}
        except (UserError, ValueError, OSError, MemoryError) as error:
            findings.error("record that cannot be drawn", where, index, str(error))
            continue
        for shape in sorted(shapes - {hw}):
            text = f"{sample.image}: a mask is {shape[0]} x {shape[1]}, the image {hw[0]} x {hw[1]}"
            findings.error("mask of another size than its image", where, index, text)


def _is_there(root, name, split):
    if name in ("ade20k", "cocostuff", "mapillary"):
        from data_pipelines.semantic import LAYOUTS

        return (root / LAYOUTS[name].splits[split][1]).is_dir()
    if name in ("paco_lvis", "pascal_part", "partimagenet"):
        from data_pipelines.part_annotations import LAYOUTS

        return (root / LAYOUTS[name].annotations.format(split=split)).exists()
    return name == "reason" and (root / "reason_seg/ReasonSeg" / split).is_dir()


def _check_files(root, name, splits, findings, options):
    family = KINDS[name].family
    if name in ("ade20k", "cocostuff", "mapillary"):
        return {split: check_label_maps(root, name, split, findings, options) for split in splits}
    if family == "semantic":
        return _check_parts(root, name, splits, findings, options)
    if family == "refer":
        return _check_refer(root, name, findings, options)
    return _check_named(root, name, splits, findings, options)


def _check_parts(root, name, splits, findings, options):
    from data_pipelines.part_annotations import LAYOUTS

    layout, found = LAYOUTS[name], {}
    for split in splits:
        path = root / layout.annotations.format(split=split)
        folder = root / layout.images.format(split=split)
        if path.exists() and folder.is_dir():
            found[split] = check_coco([path], folder, findings, options, rule=layout.label, dataset=name)
    return found


def _check_refer(root, name, findings, options):
    from data_pipelines.refer import LAYOUTS

    path, folder = root / "refer_seg" / name / "instances.json", root / "refer_seg" / LAYOUTS[name].images
    if not path.exists() or not folder.is_dir():
        return {}
    found = check_coco([path], folder, findings, options, rule=lambda category: (category["name"], None), dataset=name)
    count, expected = found["files"][f"{name} {path.name}"]["annotations"], EXPECTED_ANNOTATIONS.get(name)
    if expected is not None and count != expected:
        text = f"{count:,} annotations, the complete data set has {expected:,}"
        findings.warning("other count than the release", f"{name} {path.name}", None, text)
    return found


def _check_named(root, name, splits, findings, options):
    """Images that the records of a data set name, each once; those that are missing were counted when it was opened."""
    images = {}
    for split in splits:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = open_family(root, name, split)
        except UserError:  # said before
            continue
        for index in range(len(source)):
            record = source.record(index)
            if isinstance(record["image"], str):  # of a build it is in memory
                images.setdefault(record["image"], f"{name} {split}")
    chosen = pick(images, options.max_images)
    pictures = read_pictures(chosen, workers=options.workers, label=name)
    for image, picture in zip(chosen, pictures, strict=True):
        if picture.fault is not None:
            findings.error("unreadable image", images[image], None, picture.fault)
    unreadable = sum(picture.fault is not None for picture in pictures)
    return {"named": len(images), "read": len(pictures) - unreadable, "unreadable": unreadable}
