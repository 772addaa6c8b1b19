"""`PartonomyRecords`: the images of a PARTONOMY folder as records that can be stored, and the draw of questions (D 4.6)."""

import collections
import functools
from pathlib import Path

import numpy as np

from data_pipelines.masks import decode_segmentation
from data_pipelines.partonomy.records import Question, load_entries, parse_question, training_conversation
from data_pipelines.partonomy.source import read_parts
from data_pipelines.record import Dialogue, Sample
from plum_jax.errors import UserError

TUPLES = ("answer_choices", "answer_types", "object_answer_choices", "object_answer_types", "object_answer_classes")


class PartonomyRecords:
    """A `StorableSource` over `*_qa_pairs_{split}.json`: one record for each image, with all its questions.

    Args:
      root: folder of the question file; image paths are relative to it.
      per_image: questions drawn for a sample, different ones; fewer where there are fewer.
      question_weights: {question type: weight in the draw}, "default" for the others; None: all 1.
      dataset: name of the data set; default: the name of the folder.
    """

    family, grounded = "explanatory", True

    def __init__(self, root, *, split="train", per_image=1, question_weights=None, dataset=None):
        self.root, self.dataset = Path(root), dataset or Path(root).resolve().name
        self.path = _question_file(self.root, split)
        self.index_files = tuple(path for path in (self.path, self.root / "dataset.json") if path.is_file())
        self.skipped, self.faults = collections.Counter(), []
        groups = collections.defaultdict(list)
        for number, entry in enumerate(load_entries(self.path)):
            try:
                question = parse_question(entry, self.path, number)
                training_conversation(question)  # an answer that does not list its parts is found now, not in a run
                groups[question.image_path].append(question)
            except (UserError, ValueError) as error:
                self.skipped["bad question"] += 1
                self.faults.append((f"entry {number}", "bad question", str(error)))
        if not groups:
            first = f"; the first fault: {self.faults[0][2]}" if self.faults else ""
            raise UserError(f"{self.path}: holds no usable question{first}; run plum data check on the folder")
        self._groups = list(groups.items())
        self.parts = tuple(read_parts(self.root, [_Questions(group) for _, group in self._groups]))
        self._draw = self.drawing(per_image=per_image, question_weights=question_weights)

    def __len__(self):
        return len(self._groups)

    def record(self, index):
        image_path, group = self._groups[index]
        instances, questions = [], []
        for question in group:
            if question.segmentations not in instances:
                instances.append(question.segmentations)
            fields = {name: value for name, value in vars(question).items() if name not in ("image_path", "segmentations")}
            questions.append({**fields, "instance": instances.index(question.segmentations)})
        image = str(self.root / image_path)
        return {"key": image_path, "image": image, "dataset": self.dataset, "instances": instances, "questions": questions}

    def sample(self, index, rng):
        return self._draw(self.record(index), rng)

    @classmethod
    def drawing(cls, *, per_image=1, question_weights=None):
        if per_image < 1:
            raise UserError(f"per_image is {per_image}; draw at least one question for each image")
        return functools.partial(_draw, per_image=per_image, weights=dict(question_weights or {}))


class _Questions:
    """What `read_parts` reads of a record."""

    def __init__(self, questions):
        self.questions = questions


def _question_file(root, split):
    found = sorted(root.glob(f"*_qa_pairs_{split}.json"))
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        raise UserError(f"{root}: has {what} files *_qa_pairs_{split}.json; give a folder with one, and images/ beside it")
    return found[0]


def stored_questions(record):
    """Record -> [Question], with equal segmentations as one object."""
    questions = []
    for fields in record["questions"]:
        values = {name: value for name, value in fields.items() if name != "instance"}
        values.update({name: tuple(values[name]) for name in TUPLES if values[name] is not None})
        values["answer_parts"] = tuple(map(tuple, values["answer_parts"]))
        questions.append(Question(image_path=record["key"], segmentations=record["instances"][fields["instance"]], **values))
    return questions


def _draw(record, rng, *, per_image, weights):
    """Record -> Sample: `per_image` different questions by weight, each with its correct answer, and the masks they name."""
    questions = stored_questions(record)
    weight = np.array([weights.get(q.question_type, weights.get("default", 1.0)) for q in questions], np.float64)
    if not weight.sum() > 0:
        raise UserError(f"{record['key']}: no question has a positive question_weights; raise one")
    count = min(per_image, int((weight > 0).sum()))
    chosen = rng.choice(len(questions), count, replace=False, p=weight / weight.sum())
    slots, masks, dialogues = {}, [], []
    for i in chosen.tolist():
        row, owners = training_conversation(questions[i]), []
        for part in row.parts:
            owner = record["questions"][i]["instance"], part
            if owner not in slots:
                slots[owner] = len(masks)
                masks.append(_united(questions[i].segmentations[part]))
            owners.append(slots[owner])
        dialogues.append(Dialogue(row.turns, row.spans, tuple(owners)))
    return Sample("explanatory", record["dataset"], record["key"], record["image"], tuple(dialogues), tuple(masks))


def _united(entries):
    """One entry as it is; several as one uint8[H, W] (the part of an object may be in several pieces)."""
    if len(entries) == 1:
        return entries[0]
    return functools.reduce(np.bitwise_or, map(decode_segmentation, entries))
