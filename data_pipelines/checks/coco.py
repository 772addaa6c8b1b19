"""COCO annotation files of parts: entries, categories, every polygon and run length, every image. Files are streamed."""

import collections
import dataclasses

from pycocotools import mask as coco_mask

from data_pipelines.checks.categories import meanings
from data_pipelines.checks.duplicates import report_copies
from data_pipelines.checks.names import report_collisions
from data_pipelines.checks.pictures import pick, read_pictures
from data_pipelines.checks.strict_json import StrictDecoder
from data_pipelines.folders import identity, image_size, inside, present, within
from data_pipelines.json_array import scan_object
from data_pipelines.masks import MOST_PIXELS, encode_coco
from plum_jax.errors import UserError

LAYOUT = "a COCO annotation file"
LISTS = ("images", "annotations", "categories")


@dataclasses.dataclass
class CocoFile:
    """What a file says. `images` {id: (file name, (H, W))}, `categories` {id: entry}, `labels` {id: (object, part or None)}."""

    path: object
    name: str  # in messages
    images: dict = dataclasses.field(default_factory=dict)
    categories: dict = dataclasses.field(default_factory=dict)
    labels: dict = dataclasses.field(default_factory=dict)
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    used: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {category id: annotations}
    annotated: set = dataclasses.field(default_factory=set)  # image ids
    several: dict = dataclasses.field(default_factory=dict)  # {(image id, object): whole objects}


def check_coco(paths, images, findings, options, *, hierarchy=None, rule=None, dataset=""):
    """COCO files, the splits of one data set, with their images in a folder -> {"files": {name: counts}, "images": counts}.

    hierarchy: of --hierarchy. rule: entry of "categories" -> (object, part or None) or None, for data sets that have one.
    dataset: what stands before file names in messages.
    """
    alone = len({path.name for path in paths}) == len(paths)
    names = [f"{dataset} {path.name if alone else path}".strip() for path in paths]
    files = [_read(path, name, findings, hierarchy, rule) for path, name in zip(paths, names, strict=True)]
    if not any(file.counts["images"] + file.counts["annotations"] for file in files) and not any(findings.counts.values()):
        raise UserError(f"{paths[0]}: has no image and no annotation; there is nothing to check")
    summary = {"files": {file.name: _summary(file) for file in files}, "images": {}}
    if images is None:
        findings.warning("images", str(paths[0].parent), None, "images were not read; give their folder with --images")
        return summary
    summary["images"] = _check_images(files, images, findings, options)
    return summary


def _read(path, name, findings, hierarchy, rule):
    file = CocoFile(path, name)
    try:
        _read_index(file, findings)
        file.labels = meanings(file, hierarchy, rule, findings)
        _read_annotations(file, findings)
    except (UserError, OSError) as error:
        findings.error("unreadable file", name, None, str(error).removeprefix(f"{path}: "))
    else:
        for number in file.images:
            if number not in file.annotated:
                findings.warning("image without an annotation", name, f"image {number}", "has no annotation")
    for number, category in file.categories.items():
        if number not in file.labels:
            _report_meaningless(file, number, category, hierarchy, rule, findings)
    report_collisions({label[0] for label in file.labels.values()}, "object", findings, name)
    report_collisions({label[1] for label in file.labels.values() if label[1]}, "part", findings, name)
    several = [(number, thing) for (number, thing), count in file.several.items() if count > 1]
    if several and rule is None:
        first = file.images[several[0][0]][0]
        text = (
            f"{len(several):,} times an image shows several objects of one name, first: {first} ({several[0][1]!r}); "
            "plum data questions draws a box around the one that it asks about"
        )
        findings.warning("ambiguous question", name, None, text)
    return file


def _report_meaningless(file, number, category, hierarchy, rule, findings):
    name, used = category.get("name"), file.used[number]
    lost = f"its {used:,} annotations are left out" if used else "nothing uses it"
    if hierarchy is not None:
        text = f"category {name!r} is not in --hierarchy; {lost}"
    elif rule is not None:
        text = f"category {name!r} is no object and no part as this data set names them; {lost}"
    else:
        text = f"category {name!r} has no parent object: use --hierarchy parts.yaml or name it 'object:{name}'; {lost}"
    findings.warning("category without an object", file.name, None, text)


def _read_index(file, findings):
    """Images and categories."""
    decoder, seen, last = StrictDecoder(), set(), None
    for field, value in scan_object(file.path, LAYOUT, decoder):
        if field != last and field in seen:
            findings.error("key that stands twice", file.name, None, f"key {field!r} stands twice; keep one")
        seen.add(field)
        last = field
        repeated = decoder.repeated()
        if field not in LISTS or value == []:
            continue
        number = identity(value, "id") if isinstance(value, dict) else None
        where = f"{ {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}[field] } {number}"
        for key in repeated:
            findings.error("key that stands twice", file.name, where, f"key {key!r} stands twice; keep one")
        if number is None:
            findings.error("entry without an id", file.name, field, f"{repr(value)[:80]} has no id; give every entry one")
        elif field == "images":
            _add_image(file, number, value, where, findings)
        elif field == "categories" and not isinstance(value.get("name"), str):
            findings.error("category without a name", file.name, where, "has no name; give it one")
        elif field == "categories":
            file.categories[number] = value
    missing = [name for name in LISTS if name not in seen]
    if missing:
        raise UserError(f"{file.path}: has no list {missing[0]!r}; give {LAYOUT}")


def _add_image(file, number, value, where, findings):
    name, hw = value.get("file_name"), image_size(value)
    file.counts["images"] += 1
    if number in file.images:
        findings.error("id that occurs twice", file.name, where, "the id occurs twice; give every image its own")
    elif not inside(name):
        shown = repr(name)[:100]
        findings.error("image outside the folder", file.name, where, f"file_name is {shown}; give a path below --images")
    elif hw is None or hw[0] * hw[1] > MOST_PIXELS:
        shown = f"{value.get('height')!r} x {value.get('width')!r}"[:60]
        findings.error("image without a size", file.name, where, f"is {shown}; give the image's height and width")
    else:
        file.images[number] = (name, hw)


def _read_annotations(file, findings):
    from plum_jax.console import Progress

    ids = set()
    with Progress(label=file.name, unit="annotation") as bar:
        for field, value in scan_object(file.path, LAYOUT):
            number = identity(value, "id") if field == "annotations" and isinstance(value, dict) else None
            if number is not None:
                file.counts["annotations"] += 1
                if number in ids:
                    text = "the id occurs twice; give every annotation its own"
                    findings.error("id that occurs twice", file.name, f"annotation {number}", text)
                ids.add(number)
                _check_annotation(file, value, f"annotation {number}", findings)
                bar.update()


def _check_annotation(file, value, where, findings):
    name = file.name
    image, category = identity(value, "image_id"), identity(value, "category_id")
    if category not in file.categories:
        findings.error("unknown label", name, where, f"category {category!r} is not in the file; add it, or correct the id")
        return
    file.used[category] += 1
    file.annotated.add(image)
    if image not in file.images:
        findings.error("unknown image", name, where, f"image {image!r} is not in the file; add it, or correct the id")
        return
    if value.get("iscrowd"):
        file.counts["crowds"] += 1
        findings.warning("crowd annotation", name, where, "is a crowd annotation, which stands for no object (left out)")
        return
    label, hw = file.labels.get(category), file.images[image][1]
    if label is not None and label[1] is None:
        file.several[image, label[0]] = file.several.get((image, label[0]), 0) + 1
    segmentation = value.get("segmentation")
    if isinstance(segmentation, list):
        short = [ring for ring in segmentation if isinstance(ring, list) and len(ring) < 6]
        for ring in short:
            file.counts["dropped_polygons"] += 1
            findings.warning("polygon without an area", name, where, f"polygon has {len(ring) // 2} points (dropped)")
        segmentation = [ring for ring in segmentation if not any(ring is dropped for dropped in short)]
        if short and not segmentation:
            file.counts["empty_masks"] += 1
            return
    try:
        area = int(coco_mask.area(encode_coco(segmentation, hw)))
    except ValueError as error:
        findings.error("mask that cannot be read", name, where, str(error))
        return
    file.counts["masks"] += 1
    for ring in segmentation if isinstance(segmentation, list) else ():
        if min(ring) < -1 or max(ring[::2]) > hw[1] + 1 or max(ring[1::2]) > hw[0] + 1:  # rounding is no fault
            findings.warning(
                "polygon that leaves the image", name, where, f"polygon leaves the image of {hw[0]} x {hw[1]} (cut off)"
            )
    if not area:
        file.counts["empty_masks"] += 1
        findings.warning("empty mask", name, where, "the mask covers no pixel of the image (left out)")


def _summary(file):
    labels = set(file.labels.values())
    parts = [label for label in labels if label[1] is not None]
    counts = {key: file.counts[key] for key in ("images", "annotations", "masks", "empty_masks", "dropped_polygons", "crowds")}
    counts["objects"] = len({label[0] for label in labels})
    counts["parts"] = len({label[1] for label in parts})
    counts["object_part_pairs"] = len(parts)
    return counts


def _check_images(files, folder, findings, options):
    """Presence and size of the images, and copies among them."""
    owners, entries = collections.defaultdict(dict), {}
    for file in files:
        for number, (name, hw) in file.images.items():
            for other, (owner, _) in owners[name].items():
                if other != file.name:
                    text = f"image {name} is also in {owner}; splits must not share images"
                    findings.error("image in two splits", file.name, f"image {number}", text)
            owners[name].setdefault(file.name, (file.name, f"image {number}"))
            entries.setdefault(name, []).append((file.name, f"image {number}", hw))
    there = present(folder, entries, "give the folder of the images with --images")
    for file in files:
        missing = [name for name, _ in file.images.values() if name not in there]
        if missing:
            text = f"{len(missing):,} image{'s' if len(missing) > 1 else ''} not found in {folder}, first: {missing[0]}"
            findings.error("image file missing", file.name, None, text)
    paths = {}
    for name in pick([name for name in entries if name in there], options.max_images):
        try:
            paths[name] = within(folder, name, follow_links=options.follow_links)
        except UserError as error:
            findings.error("image outside the folder", *entries[name][0][:2], str(error))
    pictures = dict(zip(paths, read_pictures(paths.values(), workers=options.workers), strict=True))
    for name, picture in pictures.items():
        for file, where, hw in entries[name]:
            _compare(picture, file, where, hw, findings)
    report_copies(pictures, owners, findings, within=True)
    read = sum(picture.fault is None for picture in pictures.values())
    return {
        "named": len(entries), "missing": len(entries) - len(there), "read": read, "unreadable": len(pictures) - read,
        "turned_by_exif": sum(picture.turned for picture in pictures.values()),
    }  # fmt: skip


def _compare(picture, file, where, hw, findings):
    if picture.fault is not None:
        findings.error("unreadable image", file, where, picture.fault)
    elif picture.hw != hw:
        text = f"is {hw[0]} x {hw[1]} in the file, the upright image {picture.hw[0]} x {picture.hw[1]}"
        if picture.turned and picture.hw == hw[::-1]:
            text += "; it was annotated before the EXIF orientation turned the image: turn the masks too"
        findings.error("mask of another size than its image", file, where, text)
