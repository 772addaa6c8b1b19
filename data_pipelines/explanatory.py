"""PARTONOMY questions of one or several subsets as one Source (D 4.6): the correct answer, a mask for each part it names.

Subsets are used together; the reference trains on the last one of a list (D26). What is drawn depends on the generator that
is passed in and on nothing else; there, every worker replays the same draws (D25).
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.folders import Listing
from data_pipelines.images import boxed
from data_pipelines.json_array import JsonArray, scan
from data_pipelines.left_out import LeftOut
from data_pipelines.masks import decode_segmentation
from data_pipelines.naming import check_per_image
from data_pipelines.partonomy.records import QUESTION_TYPES, parse_question, training_conversation
from data_pipelines.record import Dialogue, Sample
from plum_jax.errors import UserError

QUESTION_FILE = re.compile(r".+_qa_pairs_(?P<split>[^_]+)\.json")
TRAINING_TYPES = ("identification_with_label", "positive_with_label", "negative_with_label")  # of the paper (D 1.6)
LAYOUT = "<name>_qa_pairs_<split>.json with images/ beside it"


class Explanatory:
    """A Source of multiple-choice questions about parts, answered correctly.

    Args:
      root: a folder with question files, a folder of such folders, a question file, or a list of these: all are used.
      split: train, val, test...: the last word of the names of the question files.
      per_image: up to so many questions about an image make one sample.
      question_types: those to use.
      question_weights: {question type: how often it is drawn against the others}; types that are not named count 1, and 0
        leaves a type out. Per type, whatever the number of its questions about an image.
      sample_one_question_per_image: True: a record is an image, and each draw takes `per_image` of its questions at random, so
        that an image with many objects counts no more than others. False: every question has its turn in each epoch.
      dataset: name of its samples.

    Questions about an image with a box around one object (`highlight_box`) are records apart from those with another box or
    none, and their image comes with the box drawn. A question that cannot be read, or whose image is missing, is counted and
    left out; `plum data check` says which.
    """

    family, grounded = "explanatory", True

    def __init__(
        self,
        root,
        *,
        split="train",
        per_image=1,
        question_types=TRAINING_TYPES,
        question_weights=None,
        sample_one_question_per_image=True,
        dataset="partonomy",
    ):
        self.index_files = question_files(root, split)
        weights = type_weights(question_types, question_weights)
        self.dataset, self._options = dataset, (per_image, weights, sample_one_question_per_image)
        self._draw = self.drawing(
            per_image=per_image,
            question_types=question_types,
            question_weights=question_weights,
            sample_one_question_per_image=sample_one_question_per_image,
        )
        left_out, parts, rows, groups, self._arrays = LeftOut(), set(), [], {}, []
        for number, path in enumerate(self.index_files):
            ranges = []
            for question, span in _usable(path, weights, left_out):
                groups.setdefault((number, question.image_path, question.highlight_box), []).append(len(rows))
                rows.append((number, len(ranges), QUESTION_TYPES.index(question.question_type)))
                ranges.append(span)
                parts.update(question.segmentations)
            self._arrays.append(JsonArray(path, ranges))
        if not rows:
            files = ", ".join(map(str, self.index_files))
            raise UserError(
                f"{files}: no usable question of {', '.join(weights)} (left out: {left_out}, and other types); run plum data "
                "check on the folder"
            )
        self.skipped, self.faults, self.parts = left_out.counts, left_out.faults, tuple(sorted(parts))
        self._rows = np.array(rows, np.int32)  # file, row in that file, question type
        size = max(map(len, groups.values())) if sample_one_question_per_image else per_image
        records = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
        self._members = np.array([k for record in records for k in record], np.int64)
        self._starts = np.cumsum([0, *map(len, records)])

    def __len__(self):
        return len(self._starts) - 1

    def _record(self, first, members):
        """The record whose first question is number `first`, with the questions `members` alone."""
        (number, row), at_random = self._rows[first, :2].tolist(), self._options[2]
        path = self.index_files[number]
        questions, objects = [], []
        for place in self._rows[members, 1].tolist():
            entry = self._arrays[number][place]
            segmentations = entry.pop("segmentations")
            if segmentations not in objects:
                objects.append(segmentations)
            questions.append({**entry, "object": objects.index(segmentations)})
        image_path = questions[0]["image_path"]
        box = questions[0].get("highlight_box")
        mark = "" if box is None else f"@{','.join(map(str, box))}"  # the same image with another box is another record
        key = f"{path.parent.name}/{path.stem}:{image_path}{mark}" + ("" if at_random else f"#{row}")
        return {
            "key": key, "image": str(path.parent / image_path), "dataset": self.dataset, "objects": objects,
            "questions": questions,
        }  # fmt: skip

    def record(self, index):
        """-> {"key", "image", "dataset", "objects": [{part: [entries]}], "questions": [fields of D 1.5 and "object"]}."""
        members = self._members[self._starts[index] : self._starts[index + 1]]
        return self._record(members[0], members)

    def sample(self, index, rng):
        """The same as `drawing` gives for the whole record; only the questions that were drawn are read."""
        members = self._members[self._starts[index] : self._starts[index + 1]]
        kinds = [QUESTION_TYPES[k] for k in self._rows[members, 2]]
        return _sample(self._record(members[0], members[choose(kinds, rng, *self._options)]))

    @classmethod
    def drawing(cls, *, per_image=1, question_types=TRAINING_TYPES, question_weights=None, sample_one_question_per_image=True):
        """What makes a Sample from a record: (record, rng) -> the questions that are drawn."""
        check_per_image(per_image)
        weights = type_weights(question_types, question_weights)
        return functools.partial(_draw, options=(per_image, weights, sample_one_question_per_image))


def _usable(path, weights, left_out):
    """Yields (Question, byte range) of the questions to train on; the others of these types go to `left_out`."""
    listing = Listing((str(path.parent),))
    for index, (start, stop, entry) in enumerate(scan(path, LAYOUT)):
        kind = entry.get("question_type") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind in QUESTION_TYPES and kind not in weights:
            continue
        try:
            question = parse_question(entry, path, index)
            training_conversation(question)
        except UserError as error:
            left_out.add(f"entry {index}", "question not readable", str(error))
        except ValueError as error:
            left_out.add(f"entry {index}", "answer does not list its parts", f"{path}: entry {index}: {error}")
        else:
            if listing.find(question.image_path):
                yield question, (start, stop)
            else:
                message = f"{path}: entry {index}: image {question.image_path!r} is missing"
                left_out.add(f"entry {index}", "image file missing", message)


def choose(kinds, rng, per_image, weights, at_random):
    """Question types of a record -> numbers of the questions that are drawn, all of them when not `at_random`."""
    if not at_random:
        return np.arange(len(kinds))
    share = np.array([weights.get(kind, 0) / kinds.count(kind) for kind in kinds])
    return rng.choice(len(kinds), min(per_image, np.count_nonzero(share)), replace=False, p=share / share.sum())


def _draw(record, rng, *, options):
    kinds = [question["question_type"] for question in record["questions"]]
    if not set(kinds) & options[1].keys():
        raise UserError(f"{record['key']}: has no question of {', '.join(options[1])}; build it again with these types")
    return _sample({**record, "questions": [record["questions"][k] for k in choose(kinds, rng, *options)]})


def stored_questions(record):
    """Record of `Explanatory.record` -> its Questions."""
    return [
        parse_question({**fields, "segmentations": record["objects"][fields["object"]]}, record["key"], number)
        for number, fields in enumerate(record["questions"])
    ]


def _sample(record):
    questions = stored_questions(record)
    try:
        dialogues, masks = dialogues_with_masks(questions)
    except ValueError as error:
        raise UserError(f"{record['key']}: {error}; run plum data check on the folder") from error
    image = boxed(record["image"], questions[0].highlight_box)  # of all questions: another box is another record
    return Sample(Explanatory.family, record["dataset"], record["key"], image, dialogues, masks)


def dialogues_with_masks(questions):
    """Questions about one image -> (Dialogues, masks). Each part of each object has one mask, whoever asks for it.

    Raises ValueError for masks of one part that do not decode to one size.
    """
    objects, slots, masks, dialogues = [], {}, [], []
    for question in questions:
        row = training_conversation(question)
        if question.segmentations not in objects:
            objects.append(question.segmentations)
        which = objects.index(question.segmentations)
        for part in row.parts:
            if (which, part) not in slots:
                slots[which, part] = len(masks)
                masks.append(_united(question.segmentations[part], part))
        dialogues.append(Dialogue(row.turns, row.spans, tuple(slots[which, part] for part in row.parts), row.parts))
    return tuple(dialogues), tuple(masks)


def _united(entries, part):
    """The one entry of a part as it is; several as their union, uint8[H, W]."""
    if len(entries) == 1:
        return entries[0]
    masks = [decode_segmentation(entry) for entry in entries]
    sizes = sorted({mask.shape for mask in masks})
    if len(sizes) > 1:
        raise ValueError(f"masks of {part!r} have the sizes {sizes}")
    return np.bitwise_or.reduce(masks)


def question_files(root, split):
    """What `Explanatory` takes as root -> [paths of question files], each once. UserError where there is none.

    A folder that has question files itself is one subset; else each folder in it that has some is.
    """
    found = []
    for place in [root] if isinstance(root, str | Path) else root:
        place = Path(place)
        if place.is_dir():
            here = _files_in(place, split)
            for folder in () if here else sorted(path for path in place.iterdir() if path.is_dir()):
                here += _files_in(folder, split)
            if not here:
                raise UserError(f"{place}: has no question file of split {split!r}; put {LAYOUT} there, or folders of these")
            found += here
        else:
            found.append(place)  # a missing file is named when it is opened
    if not found:
        raise UserError("no folder with question files is given; give one or more")
    return list(dict.fromkeys(found))


def _files_in(folder, split):
    matches = [(path, QUESTION_FILE.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [path for path, match in matches if match and match["split"] == split]


def type_weights(types, weights):
    """Types, and {type: weight} or None -> {type: positive weight}. UserError for unknown types and wrong weights."""
    if not isinstance(types, list | tuple) or not all(isinstance(name, str) for name in types):
        raise UserError(f"question_types is {types!r}; give a list of {', '.join(QUESTION_TYPES)}")
    if not isinstance(weights or {}, Mapping) or not all(type(weight) in (int, float) for weight in (weights or {}).values()):
        raise UserError(f'question_weights is {weights!r}; give a number for each type, such as {{"default": 1.0}}')
    weights = dict(weights or {})
    for name in [*types, *(weights.keys() - {"default"})]:
        if name not in QUESTION_TYPES:
            raise UserError(f"question type {name!r} is unknown; use {', '.join(QUESTION_TYPES)}")
    for name, weight in weights.items():
        if name not in (*types, "default") or not 0 <= weight < float("inf"):
            raise UserError(f"question_weights has {name}={weight}; give numbers from 0 for {', '.join(types)}")
    chosen = {name: float(weights.get(name, weights.get("default", 1.0))) for name in types}
    if not any(chosen.values()):
        raise UserError(f"no question type has a positive weight; raise one of {', '.join(types) or 'none'}")
    return {name: weight for name, weight in chosen.items() if weight}
