"""The files of TextVQA, GQA and POPE, and the answer files that their official scripts take (D 4.4, D 5.7)."""

import collections
import dataclasses
import itertools
import json
import os
from pathlib import Path

from data_pipelines.folders import check_regular, inside, read_json
from data_pipelines.image_folders import Listing
from data_pipelines.naming import is_reserved
from plum_jax.errors import UserError
from plum_jax.evaluation.asked import WORDS, Asked
from plum_jax.evaluation.benchmarks import Data

SHORT_ANSWER = " Answer the question using a single word or phrase."
YES_NO = ' Please answer the question with "Yes" or "No".'
TEXTVQA, GQA, POPE = "textvqa", "gqa", "pope"
POPE_SPLITS = ("random", "popular", "adversarial")
IMAGES = {  # folders below the root of all data, tried in this order
    TEXTVQA: ("textvqa/images", "textvqa/train_images"),
    GQA: ("gqa/images",),
    POPE: ("pope/coco/val2014", "coco/val2014"),
}
ADVICE = "it is laid out as in docs/benchmarks.md"


def question_file(dataset, split):
    """Path of the official file below the root of all data."""
    return {
        TEXTVQA: f"textvqa/TextVQA_0.5.1_{split}.json",
        GQA: f"gqa/questions/{split}_balanced_questions.json",
        POPE: f"pope/coco/coco_pope_{split}.json",
    }[dataset]


def read_official(path):
    """An official question file, of whichever of the three -> (data set, [Asked] whose image_path is the bare file name).

    Raises:
      UserError: the file is none of them, or an entry is malformed.
    """
    content = _json_or_lines(path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        return TEXTVQA, [_textvqa(entry, f"{path}: entry {i}") for i, entry in enumerate(content["data"])]
    if isinstance(content, dict):
        return GQA, [_gqa(key, entry, f"{path}: question {key}") for key, entry in content.items()]
    split = next((split for split in POPE_SPLITS if split in Path(path).stem), Path(path).stem)
    return POPE, [_pope(entry, split, f"{path}: line {i}") for i, entry in enumerate(content, 1)]


def open_files(args, dataset, split, names):
    """The official files `names` below args.data -> benchmarks.Data; questions whose image is missing are counted."""
    paths = [Path(args.data) / name for name in names]
    questions = [question for path in paths for question in read_official(path)[1]]
    skipped = collections.Counter()
    return Data(dataset, split, Path(args.data), _placed(questions, dataset, args, skipped), paths, skipped)


def _placed(questions, dataset, args, skipped):
    """Yields the questions about the first images, with the path of the image below args.data."""
    listing = Listing([str(Path(args.data) / folder) for folder in IMAGES[dataset]])
    first = set(itertools.islice(dict.fromkeys(question.image_path for question in questions), args.max_images))
    for question in questions:
        if question.image_path in first:
            path = listing.find(question.image_path)
            if path is None:
                skipped["image file missing"] += 1
            else:
                yield dataclasses.replace(question, image_path=os.path.relpath(path, args.data))


def read_answers(path, questions):
    """An answer file of the official scripts -> {index of the question: answer}.

    A JSON array, or JSON lines, of {"question_id" or "questionId", "answer" or "prediction" or "text"}; POPE's answer files,
    which have no numbers, stand in the order of the questions. Raises UserError.
    """
    content = _json_or_lines(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: holds a {type(content).__name__}; give an array of answers, each with question_id and answer")
    by_id = {question.id.rpartition("/")[2]: index for index, question in enumerate(questions)}
    answers = {}
    for number, entry in enumerate(content):
        where = f"{path}: entry {number}"
        text = _first(entry, ("answer", "prediction", "text"), where)
        key = next((entry[name] for name in ("question_id", "questionId") if name in entry), None)
        index = number if key is None else by_id.get(str(key))
        if index is None or index >= len(questions):
            raise UserError(f"{where}: question {key if key is not None else number} is not in the reference; check the files")
        if index in answers:
            raise UserError(f"{where}: question {key} is answered twice; remove one answer")
        answers[index] = str(text)
    return answers


def _first(entry, names, where):
    found = next((entry[name] for name in names if isinstance(entry, dict) and isinstance(entry.get(name), str)), None)
    if found is None:
        raise UserError(f"{where}: has no {names[0]}; give each entry question_id and {names[0]}")
    return found


def _json_or_lines(path):
    """The content of a JSON file, or the list of the objects of a file with one a line (POPE's are called .json too)."""
    try:
        check_regular(path)
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {ADVICE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from error
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return [json.loads(line) for line in lines] if _is_object(lines) else json.loads(text)
    except (ValueError, RecursionError):
        return read_json(path, ADVICE)  # with its message


def _is_object(lines):
    """Whether the first line is an object of its own, which none of a JSON document on several lines is."""
    if len(lines) < 2:
        return bool(lines) and '"label"' in lines[0] and lines[0].startswith("{") and '"data"' not in lines[0]
    try:
        return isinstance(json.loads(lines[0]), dict)
    except ValueError:
        return False


def _text(entry, field, where):
    value = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: has no {field}; download the file again")
    return value


def _asked(dataset, key, image, question, where, **more):
    if not inside(image) or is_reserved(question):
        raise UserError(f"{where}: image {image[:100]!r} or question is not usable; download the file again")
    return Asked(f"{dataset}/{key}", image, question, dataset=dataset, kind=WORDS, **more)


def _textvqa(entry, where):
    question = _text(entry, "question", where)
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where}: has no answers; take the split val, those of test are secret")
    key = entry.get("question_id")
    return _asked(
        TEXTVQA, key, f"{_text(entry, 'image_id', where)}.jpg", question + SHORT_ANSWER, where, references=tuple(answers)
    )


def _gqa(key, entry, where):
    answer = _text(entry, "answer", where)
    full = entry.get("fullAnswer")
    kind = entry["types"].get("structural") if isinstance(entry.get("types"), dict) else None
    return _asked(
        GQA, key, f"{_text(entry, 'imageId', where)}.jpg", _text(entry, "question", where) + SHORT_ANSWER, where,
        references=(answer, full) if isinstance(full, str) else (answer,), groups=(kind,) if isinstance(kind, str) else (),
    )  # fmt: skip


def _pope(entry, split, where):
    label = _text(entry, "label", where)
    if label not in ("yes", "no"):
        raise UserError(f"{where}: label is {label!r}; POPE has yes and no")
    return _asked(
        POPE, f"{split}/{entry.get('question_id', where.rpartition(' ')[2])}", _text(entry, "image", where),
        _text(entry, "text", where) + YES_NO, where, groups=(split,), references=(label,),
    )  # fmt: skip
