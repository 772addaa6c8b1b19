"""The root of the training data sets: which of them are there, and each opened as a run opens it, counted and read."""

import importlib
import warnings
from pathlib import Path

from data_pipelines.checks.coco import check_coco
from data_pipelines.checks.label_maps import check_label_maps
from data_pipelines.checks.pictures import pick, read_pictures
from data_pipelines.expected import EXPECTED, EXPECTED_ANNOTATIONS
from data_pipelines.kinds import KINDS
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
        splits = {}
        for split in SPLITS:
            counts = _open(root, name, split, findings, options)
            if counts is not None:
                splits[split] = counts
        found[name] = {"splits": splits, "images": _check_files(root, name, list(splits) or ["train"], findings, options)}
    return found


def open_family(root, name, split="train", **options):
    """The Source of a data set. UserError where its files are not as they should be."""
    kind = KINDS[name]
    module, _, cls = kind.place.partition(":")
    return getattr(importlib.import_module(module), cls)(root, split=split, **dict(kind.options), **options)


def _open(root, name, split, findings, options):
    """Counts of a split; None where it cannot be opened, which is an error for the training split alone."""
    where = f"{name} {split}"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            source = open_family(root, name, split)
    except UserError as error:
        if split == "train":
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
        findings.warning("record left out", where, key, message)
    listed = getattr(source, "listed", len(source) + sum(source.skipped.values()))
    expected = EXPECTED.get(NAMES.get(name, name), {}).get(split)
    if expected is not None and listed != expected and options.max_images is None:
        findings.warning(
            "other count than the release", where, None, f"{listed:,} records, the complete data set has {expected:,}"
        )
    return {"records": len(source), "listed": listed, "expected": expected, "left_out": dict(source.skipped)}


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
            if record["image"] is not None:
                images.setdefault(record["image"], f"{name} {split}")
    chosen = pick(images, options.max_images)
    pictures = read_pictures(chosen, workers=options.workers, label=name)
    for image, picture in zip(chosen, pictures, strict=True):
        if picture.fault is not None:
            findings.error("unreadable image", images[image], None, picture.fault)
    unreadable = sum(picture.fault is not None for picture in pictures)
    return {"named": len(images), "read": len(pictures) - unreadable, "unreadable": unreadable}
