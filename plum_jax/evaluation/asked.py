"""The questions of the benchmarks beside PARTONOMY, and questions.jsonl: one a line, with what the right answer is.

`plum evaluate` writes the file before it runs a model, and `plum score` reads it: scoring needs neither the data sets nor a
model. The fields are in docs/benchmarks.md.
"""

import dataclasses
import json
import os
from pathlib import Path

from data_pipelines.masks import segmentation_area
from plum_jax.errors import UserError

FILE_NAME = "questions.jsonl"
MASK, WORDS = "mask", "words"


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question about one image: for a mask, or for words."""

    id: str  # unique in its file
    image_path: str  # relative to the folder of the data
    prompt: str
    dataset: str = ""
    kind: str = MASK
    groups: tuple = ()  # tables that it counts in, beside "all"
    name: str = ""  # the class, part or phrase that is asked for
    given: str | None = None  # the answer that teacher forcing gives; None: the question is only asked openly
    span: tuple | None = None  # its characters that own the mask
    target: dict | None = None  # run lengths; None: nothing in the image is meant
    ignore: dict | None = None  # run lengths of pixels that count neither for nor against
    references: tuple = ()  # right answers in words

    def to_json(self):
        """One line, without fields that say nothing."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, (), "")}
        return json.dumps(fields, ensure_ascii=False)


def write_questions(path, questions):
    """Writes questions.jsonl under a temporary name, then renames. Returns how many there were."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, count = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for question in questions:
                file.write(question.to_json() + "\n")
                count += 1
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_questions(path):
    """Yields the `Asked` of a questions.jsonl, one at a time: the masks of a large data set are gigabytes. UserError names
    file, line and fault."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _parse(line, f"{path}: line {number}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; plum evaluate writes it, with --questions-only without a model") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a questions.jsonl of plum evaluate") from error


TEXTS = {"id", "image_path", "prompt", "dataset", "name", "given"}
FIELDS = {field.name for field in dataclasses.fields(Asked)}


def _parse(line, where):
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); give a questions.jsonl of plum evaluate") from error
    if not isinstance(entry, dict) or not entry.keys() <= FIELDS or not {"id", "image_path", "prompt"} <= entry.keys():
        raise UserError(f"{where}: is not a question with id, image_path and prompt; give a questions.jsonl of plum evaluate")
    if entry.get("kind", MASK) not in (MASK, WORDS):
        raise UserError(f"{where}: kind is {entry['kind']!r}; use {MASK} or {WORDS}")
    for name in TEXTS & entry.keys():
        if not isinstance(entry[name], str):
            raise UserError(f"{where}: {name} is {entry[name]!r}; give a text")
    for name in ("target", "ignore"):
        if entry.get(name) is not None:
            _check_mask(entry[name], f"{where}: {name}")
    for name, kind in (("groups", str), ("span", int), ("references", str)):
        if name in entry:
            if not isinstance(entry[name], list) or not all(type(item) is kind for item in entry[name]):
                raise UserError(
                    f"{where}: {name} is {entry[name]!r}; give a list of {'texts' if kind is str else 'two numbers'}"
                )
            entry[name] = tuple(entry[name])
    if entry.get("kind") == WORDS and not entry.get("references"):
        raise UserError(f"{where}: is a question for words without references; give the right answers")
    return Asked(**entry)


def _check_mask(rle, where):
    try:
        segmentation_area({"size": rle["size"], "counts": rle["counts"]})
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{where} is not a mask in run lengths; write {{'size': [H, W], 'counts': text}}") from error
