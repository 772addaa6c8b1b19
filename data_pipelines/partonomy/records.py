"""PARTONOMY question files (D 1.5): reading, validating, and the conversations each question stands for (D 4.6)."""

import dataclasses
import json
import re
from pathlib import Path

from data_pipelines.conversation import END, IMAGE, Span, answer_spans
from data_pipelines.folders import inside, read_json
from plum_jax.errors import UserError

TWO_TURN = ("part_to_whole", "whole_to_part")
QUESTION_TYPES = (
    "difference",
    "difference_with_label",
    "identification",
    "identification_with_label",
    "negative",
    "negative_with_label",
    "part_to_whole",
    "positive",
    "positive_with_label",
    "whole_to_part",
)
FIELDS = ("image_path", "image_label", "question", "question_type", "answer_choices", "answer_types", "answer_parts")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
OBJECT_FIELDS = ("object_question", "object_answer_choices", "object_answer_types", "object_answer_classes")


@dataclasses.dataclass(frozen=True)
class Question:
    """One multiple-choice question. Where the correct choice stands is read from the types, never assumed."""

    image_path: str  # relative to the folder of the question file
    image_label: str
    question: str
    question_type: str
    answer_choices: tuple[str, ...]
    answer_types: tuple[str, ...]
    answer_parts: tuple[tuple[str, ...], ...]
    segmentations: dict  # {part: [entries of D 1.3]}, every visible part of the object
    object_question: str | None = None
    object_answer_choices: tuple[str, ...] | None = None
    object_answer_types: tuple[str, ...] | None = None
    object_answer_classes: tuple[str, ...] | None = None
    highlight_box: tuple[int, ...] | None = None  # x0, y0, x1, y1 of the object meant, where the image shows others like it

    @property
    def correct(self):
        return self.answer_types.index("correct")

    @property
    def object_correct(self):
        """Index of the correct object answer, None where no object is asked for."""
        return self.object_answer_types.index("correct") if self.object_answer_types else None

    @property
    def correct_parts(self):
        return self.answer_parts[self.correct]


@dataclasses.dataclass(frozen=True)
class Choice:
    """One conversation: a choice as the last answer, in two-turn rows after the correct answer to the first question."""

    turns: tuple[tuple[str, str], ...]
    kind: str  # "part" or "object": what the last question asks for
    index: int  # into answer_choices or object_answer_choices
    correct: bool
    parts: tuple[str, ...]  # names of the spans, as keys of segmentations where they are visible
    spans: tuple[Span, ...]


def question_file(folder, split):
    return Path(folder) / f"partonomy_qa_pairs_{split}.json"


def load_entries(path):
    """The JSON array of a question file. UserError when missing or not an array."""
    advice = "make one with plum data make --out DIR"
    entries = read_json(path, advice, kind="question file", repair="write the file again")
    if not isinstance(entries, list):
        raise UserError(f"{path}: holds a {type(entries).__name__}, expected a JSON array of questions; write the file again")
    return entries


def read_questions(path):
    """All questions of a file. UserError names the first entry that is wrong, its field and the fix."""
    return [parse_question(entry, path, index) for index, entry in enumerate(load_entries(path))]


def parse_question(entry, path, index):
    """One JSON object -> Question. UserError names file, entry, field, value and fix."""

    def fail(field, fix):
        value = json.dumps(entry.get(field), ensure_ascii=False) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(f"{path}: entry {index}: {field} is {value[:200]}; {fix}")

    if not isinstance(entry, dict):
        fail("the entry", "make it a JSON object")
    for field in FIELDS[:4]:
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            fail(field, "give a text")
    if not inside(entry["image_path"]):
        fail("image_path", "give a path relative to the folder, without ..")
    if entry["question_type"] not in QUESTION_TYPES:
        fail("question_type", f"use one of {', '.join(QUESTION_TYPES)}")
    _check_choices(entry, "answer_choices", "answer_types", "answer_parts", fail)
    _check_reserved(entry, ("question", "answer_choices"), fail)
    parts = entry["answer_parts"]
    if not all(isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names) for names in parts):
        fail("answer_parts", "give one list of part names for each choice")
    _check_correct_parts(entry, fail)
    values = {field: entry[field] for field in FIELDS[:4]}
    values.update(
        answer_choices=tuple(entry["answer_choices"]),
        answer_types=tuple(entry["answer_types"]),
        answer_parts=tuple(tuple(names) for names in parts),
        segmentations=entry["segmentations"],
    )
    if entry.get("highlight_box") is not None:
        values["highlight_box"] = _box(entry, fail)
    if entry["question_type"] in TWO_TURN:
        _check_object(entry, fail)
        values["object_question"] = entry["object_question"]
        values.update({field: tuple(entry[field]) for field in OBJECT_FIELDS[1:]})
    return Question(**values)


def _check_choices(entry, choices, types, third, fail):
    """Three parallel lists, texts in the first, exactly one "correct" in the second."""
    for field in (choices, types, third):
        if not isinstance(entry.get(field), list) or len(entry[field]) < 2:
            fail(field, "give a list with one value for each of the (five) choices")
        if len(entry[field]) != len(entry[choices]):
            fail(field, f"give {len(entry[choices])} values, one for each of {choices}")
    if not all(isinstance(text, str) and text.strip() for text in entry[choices]):
        fail(choices, "give a text for each choice")
    if sorted(map(str, entry[types])) != ["correct"] + ["incorrect"] * (len(entry[types]) - 1):
        fail(types, "mark exactly one choice correct and the others incorrect")


def _check_reserved(entry, fields, fail):
    """`<image>` and `</s>` are tokens of the conversation: in a text they would end it or stand for a second image. Half of a
    surrogate pair is no character, and no tokenizer takes it."""
    for field in fields:
        for text in entry[field] if isinstance(entry[field], list) else [entry[field]]:
            for token in (IMAGE, END):
                if isinstance(text, str) and token in text:
                    fail(field, f"remove the reserved {token} from the text")
            if isinstance(text, str) and HALF_CHARACTER.search(text):
                fail(field, "write whole characters, not half of a surrogate pair")


def _check_correct_parts(entry, fail):
    segmentations = entry.get("segmentations")
    if not isinstance(segmentations, dict) or not all(isinstance(entries, list) for entries in segmentations.values()):
        fail("segmentations", "give an object {part name: [masks]}")
    parts = entry["answer_parts"][entry["answer_types"].index("correct")]
    if not parts:
        fail("answer_parts", "name at least one part in the correct choice")
    for name in parts:
        if not segmentations.get(name):
            fail("answer_parts", f"add a mask of the correct part {name!r} to segmentations")


def _box(entry, fail):
    box = entry["highlight_box"]
    good = isinstance(box, list) and len(box) == 4 and all(type(x) is int for x in box) and box[0] < box[2] and box[1] < box[3]
    if not good:
        fail("highlight_box", "give whole numbers [x0, y0, x1, y1] with x0 < x1 and y0 < y1, or leave it out")
    return tuple(box)


def _check_object(entry, fail):
    if not isinstance(entry.get("object_question"), str) or not entry["object_question"].strip():
        fail("object_question", f"give a text, as {entry['question_type']} asks for the object too")
    _check_choices(entry, *OBJECT_FIELDS[1:], fail)
    _check_reserved(entry, ("object_question", "object_answer_choices", "object_answer_classes"), fail)
    classes = entry["object_answer_classes"]
    if classes[entry["object_answer_types"].index("correct")] != entry["image_label"]:
        fail("object_answer_classes", f"make the correct class equal to image_label {entry['image_label']!r}")


def conversations(question):
    """Question -> [Choice] in the order of D 4.6: the choices of the first question, then, for the two-turn types, those of
    the second question after the correct answer to the first. Raises ValueError when an answer does not list its parts."""
    counts = {"part": len(question.answer_choices), "object": len(question.object_answer_choices or ())}
    return [_choice(question, kind, index) for kind in _order(question) for index in range(counts[kind])]


def second_conversations(question, first):
    """[Choice] of the second of two questions after any answer to the first: `first` is its index. Errors as above."""
    kind = _order(question)[1]
    choices = question.answer_choices if kind == "part" else question.object_answer_choices
    return [_choice(question, kind, index, first) for index in range(len(choices))]


def training_conversation(question):
    """The row to train on: the correct choice, for the two-turn types after the correct first answer."""
    kind = _order(question)[-1]
    return _choice(question, kind, question.correct if kind == "part" else question.object_correct)


def _order(question):
    """What the turns ask for."""
    return {"whole_to_part": ("object", "part"), "part_to_whole": ("part", "object")}.get(question.question_type, ("part",))


def _choice(question, kind, index, first=None):
    """The row that ends in choice `index` of this kind; a turn before it has the answer `first`, None for the correct one."""
    order = _order(question)
    given = {"part": question.correct, "object": question.object_correct} if first is None else dict.fromkeys(order, first)
    turns, parts, spans = [], (), ()
    for turn, asked in enumerate(order[: order.index(kind) + 1]):
        if asked == "object":
            answer = index if asked == kind else given[asked]
            turns.append((question.object_question, question.object_answer_choices[answer]))
        else:
            answer = index if asked == kind else given[asked]
            turns.append((question.question, question.answer_choices[answer]))
            parts = question.answer_parts[answer]
            spans = tuple(Span(turn, *characters) for characters in answer_spans(turns[-1][1], parts))
    turns[0] = (f"{IMAGE}\n{turns[0][0]}", turns[0][1])
    correct = question.correct if kind == "part" else question.object_correct
    return Choice(tuple(turns), kind, index, index == correct, parts, spans)
