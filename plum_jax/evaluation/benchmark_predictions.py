"""Prediction files of any model for the benchmarks beside PARTONOMY -> Predictions. What is wrong is said with its place.

A line names its question by `index` (its line in questions.jsonl, from 0) or `id`, and has `answers` by mode or, in short,
`answer` (what the model said freely) or `mask` (all that it segmented). The answer files of the official scripts of TextVQA,
GQA and POPE are read too (docs/benchmarks.md).
"""

import difflib

from data_pipelines.masks import rle_area
from plum_jax.errors import UserError
from plum_jax.evaluation.any_model import empty_mask, run_lengths
from plum_jax.evaluation.asked import WORDS
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS, Answer, Prediction, Span
from plum_jax.evaluation.reading import read_predictions
from plum_jax.evaluation.schema import Invalid, check, show
from plum_jax.evaluation.vqa_files import read_answers

FIELDS = ("index", "id", "image_path", "question_type", "answers", "answer", "mask", "skipped")
MODES = (GT_SPANS, GENERATED)


def predictions_of(path, questions):
    """File, [Asked] (masks are not looked at beyond their size) -> {index: Prediction}. UserError."""
    file = read_predictions(path)
    first = file.entries[0][1]
    if questions[0].kind == WORDS and isinstance(first, dict) and not {"index", "id"} & first.keys():
        said = read_answers(path, questions)
        return {i: _prediction(i, questions[i], {GENERATED: Answer(text, ())}) for i, text in said.items()}
    places, found = {question.id: i for i, question in enumerate(questions)}, {}
    for where, entry in file.entries:
        try:
            index = _find(entry, questions, places)
            if index in found:
                raise Invalid(f"$ is the second prediction for question {index}, {questions[index].id}; give one")
            found[index] = _convert(entry, index, questions[index])
        except Invalid as error:
            raise UserError(f"{path}: {where}: {error}") from error
    return found


def _find(entry, questions, places):
    """Index of the question that an entry answers."""
    if not isinstance(entry, dict):
        raise Invalid(f"$ is {show(entry)}; give an object")
    known = (*FIELDS, "choice_scores")  # plum evaluate writes it for every benchmark, empty for these
    unknown = next((key for key in entry if key not in known and not key.startswith("x_")), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(FIELDS)}, or begin the name with x_"
        raise Invalid(f"$ has the unknown field {show(unknown)}; {hint}")
    if entry.get("choice_scores"):
        raise Invalid("$.choice_scores is given, but these questions have no choices; leave it out")
    if "id" in entry:
        if not isinstance(entry["id"], str) or entry["id"] not in places:
            raise Invalid(f"$.id is {show(entry['id'])}, which is no question of the reference; copy it from there")
        return places[entry["id"]]
    index = entry.get("index")
    if type(index) is not int or not 0 <= index < len(questions):
        raise Invalid(f"$.index is {show(index)}; give a whole number from 0 to {len(questions) - 1}, or an id")
    if entry.get("image_path", questions[index].image_path) != questions[index].image_path:
        raise Invalid(
            f"$.image_path is {show(entry['image_path'])}, but question {index} is about another; check the reference"
        )
    return index


def _convert(entry, index, question):
    if entry.get("skipped"):
        return _prediction(index, question, {}, str(entry["skipped"]))
    given = [key for key in ("answers", "answer", "mask") if key in entry]
    if len(given) != 1:
        raise Invalid(f"$ has {', '.join(given) or 'no answer'}; give one of answers, answer, mask and skipped")
    if given[0] == "answers":
        if not isinstance(entry["answers"], dict) or not set(MODES) >= entry["answers"].keys():
            raise Invalid(f"$.answers is {show(entry['answers'])}; give an object with {' and '.join(MODES)}")
        answers = {mode: _answer(a, f"$.answers.{mode}", question) for mode, a in entry["answers"].items()}
    elif given[0] == "answer":
        answers = {GENERATED: _answer(entry["answer"], "$.answer", question)}
    else:
        spans = [] if entry["mask"] is None else [{"phrase": question.name, "mask": entry["mask"]}]
        answers = {GENERATED: _answer({"spans": spans}, "$", question)}
    return _prediction(index, question, answers)


def _prediction(index, question, answers, skipped=None):
    return Prediction(index, question.image_path, question.dataset, {}, answers, skipped=skipped)


def _answer(given, where, question):
    try:
        check(given, "answer")
    except Invalid as error:
        raise Invalid(str(error).replace("$", where, 1)) from error
    if question.kind == WORDS and "text" not in given:
        raise Invalid(f"{where} has no text; give what the model says")
    spans = tuple(_span(span, f"{where}.spans[{i}].mask", question) for i, span in enumerate(given.get("spans", ())))
    return Answer(given.get("text", ""), spans)


def _span(given, where, question):
    known = next((rle["size"] for rle in (question.target, question.ignore) if rle is not None), None)
    if given["mask"] is None:
        mask = empty_mask(known or (1, 1))
    else:
        mask = run_lengths(given["mask"], where, known or given["mask"]["size"])
    status = given.get("status", "ok")
    if status == "ok" and not rle_area(mask["counts"], mask["size"]):
        status = "empty_mask"
    char = given.get("char")
    return Span(
        given["phrase"], mask, None if char is None else tuple(char), None, given.get("score"), given.get("raw"), status
    )
