"""Samples of a data set for people: some of its records as cards of a gallery, evenly spaced and never chosen by content."""

import collections
import functools
import itertools

import numpy as np

from data_pipelines.checks.coco import LAYOUT as COCO_LAYOUT
from data_pipelines.checks.coco import CocoFile
from data_pipelines.checks.families import open_family
from data_pipelines.checks.partonomy import LAYOUT
from data_pipelines.checks.pictures import pick
from data_pipelines.conversation import IMAGE, answer_spans
from data_pipelines.folders import identity, image_size, inside, within
from data_pipelines.json_array import JsonArray, scan, scan_object
from data_pipelines.masks import decode_rle, decode_segmentation, encode_coco, part_masks
from data_pipelines.partonomy.records import parse_question
from data_pipelines.record import NO_MASK
from plum_jax.errors import UserError
from plum_jax.report.gallery import Item, Span


def question_items(folder, files, most, *, follow_links=False):
    """Question files of a folder -> at most `most` Items, as many of each type as there are."""
    ranges, kinds = {}, collections.defaultdict(list)
    for path in files:
        found = []
        try:
            for start, stop, entry in scan(path, LAYOUT):
                kind = entry.get("question_type") if isinstance(entry, dict) else None
                kinds[path.name, str(kind)].append((path, len(found)))
                found.append((start, stop))
        except UserError:  # plum data check says it; what was read until there can be shown
            pass
        ranges[path] = JsonArray(path, found)
    share = -(-most // max(len(kinds), 1))
    chosen = [pick(group, share, (k + 0.5) / len(kinds)) for k, group in enumerate(kinds.values())]
    rows = [row for row in itertools.chain(*itertools.zip_longest(*chosen)) if row is not None][:most]
    items = (_question_item(folder, path, number, ranges[path][number], follow_links) for path, number in rows)
    return [item for item in items if item is not None]


def _question_item(folder, path, number, entry, follow_links):
    try:
        question = parse_question(entry, path, number)
        image = within(folder, question.image_path, follow_links=follow_links)
        answer, parts = question.answer_choices[question.correct], question.correct_parts
        places = answer_spans(answer, parts)
    except (UserError, ValueError):
        return None
    spans = [Span(*place, _united(question.segmentations[part])) for place, part in zip(places, parts, strict=True)]
    marks = [(part, _united(entries)) for part, entries in question.segmentations.items() if part not in parts and entries]
    choices = list(zip(question.answer_choices, (kind == "correct" for kind in question.answer_types), strict=True))
    asked = question.question if question.object_question is None else f"{question.question} / {question.object_question}"
    where = f"{path.name} entry {number} · {question.image_path} · {question.image_label}"
    return Item(
        where, image, asked, answer, tuple(spans), tuple(marks), "Also visible", tuple(choices),
        {"type": [question.question_type], "object": [question.image_label], "part": sorted(question.segmentations)},
    )  # fmt: skip


def _united(entries):
    def mask():
        hw = decode_segmentation(entries[0]).shape
        return part_masks({"": entries}, hw)[""].astype(bool)

    return mask


def coco_items(files, images, most, *, follow_links=False):
    """COCO files -> at most `most` Items, one for an image with all its annotations."""
    items = []
    for path in files:
        file, kept = CocoFile(path, path.name), {}
        for field, value in scan_object(path, COCO_LAYOUT):
            number = identity(value, "id") if isinstance(value, dict) else None
            if field == "images" and number is not None and inside(value.get("file_name")) and image_size(value):
                file.images[number] = value["file_name"], image_size(value)
            elif field == "categories" and number is not None:
                file.categories[number] = str(value.get("name"))
        chosen = set(pick(file.images, -(-most // len(files))))
        for field, value in scan_object(path, COCO_LAYOUT):
            if field == "annotations" and isinstance(value, dict) and identity(value, "image_id") in chosen:
                kept.setdefault(value["image_id"], []).append(value)
        for number, (name, hw) in file.images.items():
            if number in chosen:
                items.append(_coco_item(file, number, name, hw, kept.get(number, ()), images, follow_links))
    return [item for item in items if item is not None][:most]


def _coco_item(file, number, name, hw, annotations, images, follow_links):
    try:
        image = within(images, name, follow_links=follow_links)
    except UserError:
        return None
    names = [file.categories.get(identity(entry, "category_id"), "unknown category") for entry in annotations]
    marks = [
        (label, functools.partial(_coco_mask, entry.get("segmentation"), hw))
        for label, entry in zip(names, annotations, strict=True)
    ]
    where = f"{file.path.name} image {number} · {name}"
    return Item(where, image, marks=tuple(marks), marks_title="Annotations", tags={"category": sorted(set(names))})


def _coco_mask(segmentation, hw):
    return decode_rle(encode_coco(segmentation, hw)["counts"], hw).astype(bool)


def family_items(root, names, most):
    """Data sets of a root -> at most `most` Items, each a sample as a training run draws it."""
    items, share = [], -(-most // max(len(names), 1))
    for name in names:
        try:
            source = open_family(root, name)
        except UserError:  # plum data check says it
            continue
        for index in pick(range(len(source)), share):
            try:
                sample = source.sample(index, np.random.default_rng([0, index]))
            except UserError:
                continue
            if sample.image is not None:
                items.append(_sample_item(name, sample))
    return items[:most]


def _sample_item(name, sample):
    answer, spans, said = "", [], []
    for dialogue in sample.dialogues:
        starts = []
        for question, reply in dialogue.turns:
            answer += ("\n" if answer else "") + f"{question.replace(IMAGE, '').strip()} — "
            starts.append(len(answer))
            answer += reply
        for span, number in zip(dialogue.spans, dialogue.masks, strict=True):
            start = starts[span.turn] + span.char_start
            mask = None if number == NO_MASK else functools.partial(_sample_mask, sample.masks[number])
            spans.append(Span(start, starts[span.turn] + span.char_end, mask))
            said.append(answer[start : spans[-1].end])
    tags = {"data set": [name], "name": said if sample.family == "semantic" else []}
    return Item(f"{name} · {sample.key}", sample.image, "", answer, tuple(spans), tags=tags)


def _sample_mask(mask):
    return np.asarray(decode_segmentation(mask) if isinstance(mask, dict) else mask).astype(bool)
