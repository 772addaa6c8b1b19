"""Folders of questions: each question parsed as training does, every mask measured, every image read (D 1.3, D 1.5, D 7.5)."""

import collections
import dataclasses
import hashlib
import json
import os

from data_pipelines.checks.core import check_core
from data_pipelines.checks.duplicates import report_copies
from data_pipelines.checks.names import report_collisions
from data_pipelines.checks.pictures import pick, read_pictures
from data_pipelines.checks.strict_json import StrictDecoder
from data_pipelines.conversation import answer_spans
from data_pipelines.folders import check_regular, within
from data_pipelines.json_array import scan
from data_pipelines.masks import segmentation_area
from data_pipelines.partonomy.records import parse_question
from data_pipelines.question_files import PATTERN
from plum_jax.errors import UserError

LAYOUT = "a JSON array of questions"


@dataclasses.dataclass
class Instance:
    """The masks of one object in one image. `masks`: [(part, (H, W), pixels)] of those that can be read."""

    image: str
    label: str
    file: str
    entry: int
    masks: list


@dataclasses.dataclass
class Survey:
    """What the question files say, before an image is read."""

    files: dict = dataclasses.field(default_factory=dict)  # {name: counts}
    uses: dict = dataclasses.field(default_factory=dict)  # {image: {split: (file, entry)}}
    instances: dict = dataclasses.field(default_factory=dict)  # {hash of image and masks: Instance}
    objects: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    parts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    pairs: set = dataclasses.field(default_factory=set)  # (object, part)
    choices: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # {number of choices: questions}
    unboxed: dict = dataclasses.field(default_factory=dict)  # {(image, label): (file, entry)} asked without a box


def check_partonomy(folder, paths, findings, options):
    """Question files `paths` of a folder -> {"files": {name: counts}, "images": counts}. What is wrong goes to `findings`."""
    survey = Survey()
    for path in paths:
        _read_file(path, survey, findings)
    _check_vocabulary(folder, survey, findings)
    _check_ambiguous(survey, findings)
    report_collisions(survey.objects, "object", findings, os.fspath(folder))
    report_collisions(survey.parts, "part", findings, os.fspath(folder))
    check_core(folder, paths, survey, findings, options.expect)
    pictures = _read_images(folder, survey, findings, options)
    for instance in survey.instances.values():
        _check_sizes(instance, pictures.get(instance.image), findings)
    report_copies(pictures, survey.uses, findings)
    readable = [picture for picture in pictures.values() if picture.fault is None]
    images = {
        "named": len(survey.uses), "read": len(readable), "unreadable": len(pictures) - len(readable),
        "turned_by_exif": sum(picture.turned for picture in readable),
    }  # fmt: skip
    return {"files": survey.files, "images": images}


def _read_file(path, survey, findings):
    from plum_jax.console import Progress

    counts = collections.Counter()
    found = {"images": set(), "objects": set(), "parts": set(), "types": collections.Counter(), "instances": set(), "asked": {}}
    split, decoder = PATTERN.match(path.name)["split"] if PATTERN.match(path.name) else None, StrictDecoder()
    try:
        check_regular(path)
        with Progress(total=path.stat().st_size, label=path.name, unit="B") as bar:
            for index, (start, stop, entry) in enumerate(scan(path, LAYOUT, decoder)):
                for key in decoder.repeated():
                    findings.error(
                        "key that stands twice", path.name, index, f"key {key!r} stands twice in one object; keep one"
                    )
                _read_entry(path, index, entry, split, survey, found, counts, findings)
                bar.update(stop - start)
        if not found["types"] and not counts["wrong"]:
            findings.error("file without a question", path.name, None, "holds no question")
    except (UserError, OSError) as error:
        findings.error("unreadable question file", path.name, None, str(error).removeprefix(f"{path}: "))
    counts["questions"] += 0
    survey.files[path.name] = {
        "questions": counts["questions"], "images": len(found["images"]), "objects": len(found["objects"]),
        "parts": len(found["parts"]), "masks": counts["masks"], "empty_masks": counts["empty_masks"],
        "types": dict(sorted(found["types"].items())),
    }  # fmt: skip


def _read_entry(path, index, entry, split, survey, found, counts, findings):
    name = path.name
    try:
        question = parse_question(entry, path, index)
    except UserError as error:
        counts["wrong"] += 1
        text = str(error).removeprefix(f"{path}: ").removeprefix(f"entry {index}: ")
        findings.error("entry that is no question", name, index, text)
        return
    counts["questions"] += 1
    found["types"][question.question_type] += 1
    found["images"].add(question.image_path)
    found["objects"].add(question.image_label)
    found["parts"].update(question.segmentations)
    survey.objects[question.image_label] += 1
    survey.choices[len(question.answer_choices)] += 1
    survey.uses.setdefault(question.image_path, {}).setdefault(split, (name, index))
    _check_split(question.image_path, split, survey, name, index, findings)
    for choice, names in zip(question.answer_choices, question.answer_parts, strict=True):
        try:
            answer_spans(choice, names)
        except ValueError as error:
            findings.error("parts that are not in the text", name, index, str(error))
    _check_doubtful(question, name, index, found, findings)
    key = instance_key(question)
    if key not in survey.instances:
        survey.instances[key] = _instance(question, name, index, survey, findings)
    if key not in found["instances"]:
        found["instances"].add(key)
        counts["masks"] += sum(map(len, question.segmentations.values()))
        counts["empty_masks"] += sum(not area for _, _, area in survey.instances[key].masks)
    if question.highlight_box is None:
        survey.unboxed.setdefault((question.image_path, question.image_label), (name, index))
    seen = {part for part, _, area in survey.instances[key].masks if area}
    empty = {part for part, _, area in survey.instances[key].masks if not area} - seen
    for part in sorted(empty & set(question.correct_parts)):
        text = f"part {part!r} of the correct answer has only empty masks; draw it, or take it out of the answer"
        findings.error("correct part with an empty mask", name, index, text)


def _check_doubtful(question, name, index, found, findings):
    """Warns of a question that is asked twice, and of a wrong choice that lists the correct parts."""
    asked = (question.image_path, question.image_label, question.highlight_box, question.question_type, question.question)
    first = found["asked"].setdefault(hash((*asked, question.answer_choices)), index)
    if first != index:
        findings.warning("question that is asked twice", name, index, f"is the same question as entry {first}")
    correct = sorted(question.correct_parts)
    for number, parts in enumerate(question.answer_parts):
        if number != question.correct and sorted(parts) == correct:
            text = f"choice {number} is marked incorrect and lists the parts of the correct choice"
            findings.warning("wrong choice with the correct parts", name, index, text)


def instance_key(question):
    """Hash of what makes an object in an image: its label and masks."""
    content = json.dumps([question.image_path, question.image_label, question.segmentations], sort_keys=True)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _instance(question, name, index, survey, findings):
    masks = []
    for part, entries in question.segmentations.items():
        survey.parts[part] += 1
        survey.pairs.add((question.image_label, part))
        for entry in entries:
            try:
                masks.append((part, *segmentation_area(entry)))
            except ValueError as error:
                findings.error("mask that cannot be read", name, index, f"mask of {part!r}: {error}")
    for part, _, area in masks:
        if not area:
            findings.warning("empty mask", name, index, f"mask of {part!r} is empty")
    return Instance(question.image_path, question.image_label, name, index, masks)


def _check_split(image, split, survey, name, index, findings):
    others = [known for known in survey.uses[image] if known not in (split, None)]
    if split is not None and others and survey.uses[image][split] == (name, index):
        text = f"image {image} is also in {survey.uses[image][others[0]][0]}; splits must not share images"
        findings.error("image in two splits", name, index, text)


def _check_vocabulary(folder, survey, findings):
    """The part vocabulary of dataset.json must hold every part of the question files."""
    path = folder / "dataset.json"
    if not path.exists():
        return
    try:
        check_regular(path)
        vocabulary = set(json.loads(path.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        findings.error("dataset.json", path.name, None, f"has no readable list of parts ({error!r})")
        return
    missing = collections.defaultdict(set)
    for instance in survey.instances.values():
        missing[instance.file].update({part for part, _, _ in instance.masks} - vocabulary)
    for name, parts in missing.items():
        for part in sorted(parts):
            findings.error("unknown part", name, None, f"part {part!r} is not among the parts of dataset.json")


def _check_ambiguous(survey, findings):
    count = collections.Counter((instance.image, instance.label) for instance in survey.instances.values())
    for (image, label), number in count.items():
        if number > 1 and (image, label) in survey.unboxed:
            file, entry = survey.unboxed[image, label]
            text = f"image {image} shows {number} objects {label!r} and no box says which is asked about (highlight_box)"
            findings.warning("ambiguous question", file, entry, text)


def _read_images(folder, survey, findings, options):
    """{image: Picture} of those that are read."""
    first = {image: next(iter(uses.values())) for image, uses in survey.uses.items()}
    paths = {}
    for image in pick(first, options.max_images):
        try:
            paths[image] = within(folder, image, follow_links=options.follow_links)
        except (UserError, OSError, ValueError) as error:
            findings.error("image outside the folder", *first[image], str(error))
    pictures = dict(zip(paths, read_pictures(paths.values(), workers=options.workers), strict=True))
    for image, picture in pictures.items():
        if picture.fault is not None:
            findings.error("unreadable image", *first[image], picture.fault)
    return pictures


def _check_sizes(instance, picture, findings):
    """Every mask must be as large as the upright image."""
    if picture is None or picture.fault is not None:
        return
    for part, hw, _ in instance.masks:
        if hw == picture.hw:
            continue
        text = f"mask of {part!r} is {hw[0]} x {hw[1]}, the upright image {picture.hw[0]} x {picture.hw[1]}"
        if picture.turned and hw == picture.hw[::-1]:
            text += "; it was drawn before the EXIF orientation turned the image: turn the mask too"
        findings.error("mask of another size than its image", instance.file, instance.entry, text)
