"""An entry of the documented prediction file (docs/predictions.md) -> Prediction. Nothing of a mask or score is guessed."""

import numpy as np

from data_pipelines.masks import decode_rle, encode_coco, encode_rle, rle_area
from plum_jax.evaluation.choosing import MEASURES
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, OWN, Answer, Prediction, Span
from plum_jax.evaluation.schema import Invalid, check, show
from plum_jax.evaluation.text import choose

LOSSES = frozenset(MEASURES)  # negative log-likelihoods by definition: which way is better need not be said
PLAIN = "score"  # the name of a measure that has none


def to_prediction(entry, questions, size_of, better=None):
    """Entry -> Prediction. Raises Invalid: what is wrong, where in the entry, and the fix.

    Args:
      entry: what stands in the file. questions: QuestionIndex.
      size_of: index -> (height, width) of the image. better: "lower" or "higher" where the head of the file says it.
    """
    check(entry)
    index = questions.find(entry)
    question = questions.questions[index]
    if entry.get("skipped"):
        return Prediction(index, question.image_path, question.question_type, {}, {}, {}, entry["skipped"])
    if "answer" in entry and "answers" in entry:
        raise Invalid("$ has answer and answers; put the answer into answers under its mode")
    scores = _scores(entry, question, better)
    predicted = {
        name: _choice(choice, question, name, f"$.predicted.{name}")
        for name, choice in entry.get("predicted", {}).items()
        if choice is not None
    }
    given = {("$.answers." + mode, mode): answer for mode, answer in entry.get("answers", {}).items()}
    if "answer" in entry:
        given[("$.answer", _mode(entry, question, scores, predicted))] = entry["answer"]
    answers = {mode: _answer(answer, mode, where, question, size_of(index)) for (where, mode), answer in given.items()}
    chosen = answers[OWN].choice if OWN in answers else None
    if chosen is not None and "part" not in scores and predicted.setdefault("part", chosen) != chosen:
        raise Invalid(f"$.predicted.part is {predicted['part']}, but the answer is choice {chosen}; give the same choice")
    for name, lists in scores.items():
        if name not in predicted and not LOSSES & lists.keys():
            predicted[name] = _best(lists, f"$.choice_scores.{name}")
    return Prediction(index, question.image_path, question.question_type, scores, answers, predicted)


def _mode(entry, question, scores, predicted):
    """The mode of an answer that does not say it: one that is a choice is the chosen answer, any other is free text."""
    answer = entry["answer"]
    if "mode" in answer:
        return answer["mode"]
    chosen = answer.get("choice") is not None or _same_text(answer.get("text"), question) is not None
    return OWN if chosen or "part" in scores or "part" in predicted else GENERATED


def _same_text(text, question):
    """Index of the first choice with this text, None when there is none."""
    choices = [choice.strip() for choice in question.answer_choices]
    return choices.index(text.strip()) if text is not None and text.strip() in choices else None


def _scores(entry, question, better):
    """choice_scores as {question: {measure: [number]}}, lower is better everywhere, None where a choice has no score."""
    found = {}
    for name, given in entry.get("choice_scores", {}).items():
        where = f"$.choice_scores.{name}"
        n = _n_choices(question, name, where)
        lists = given if isinstance(given, dict) else {PLAIN: given}
        way = entry.get("better", better)
        if way is None and not lists.keys() <= LOSSES:
            raise Invalid(f'{where} does not say which way is better; add "better": "lower" or "better": "higher" to it')
        found[name] = {}
        for measure, values in lists.items():
            at = where if lists is not given else f"{where}.{measure}"
            if len(values) != n:
                raise Invalid(f"{at} has {len(values)} numbers for {n} choices; give one for each choice of the question")
            if all(value is None for value in values):
                raise Invalid(f"{at} has no number; leave it out")
            numbers = [None if value is None else _float(value, at) for value in values]
            found[name][measure] = [-x if way == "higher" and x is not None else x for x in numbers]
    return found


def _best(lists, where):
    """The choice with the best score of the only measure there is, the first of equal ones: what the published rule takes."""
    if len(lists) > 1:
        have, known = ", ".join(lists), " or ".join(MEASURES)
        raise Invalid(f"{where} has the measures {have}; leave one, call one {known}, or state the choice in predicted")
    return choose(next(iter(lists.values())))


def _float(value, where):
    try:
        return float(value)
    except OverflowError as error:
        raise Invalid(f"{where} holds {show(value)}; give numbers that a computer can hold") from error


def _n_choices(question, name, where):
    """How many choices the question `name` of choice_scores or predicted has."""
    second = {"part_to_whole": "object", "whole_to_part": "part"}.get(question.question_type)
    asked = second if name == "second_after_predicted" else name
    choices = {"part": question.answer_choices, "object": question.object_answer_choices}.get(asked)
    if not choices:
        raise Invalid(f"{where} is given, but a {question.question_type} question does not ask that; leave it out")
    return len(choices)


def _choice(choice, question, name, where):
    n = _n_choices(question, name, where)
    if choice >= n:
        raise Invalid(
            f"{where} is {choice}; give a whole number from 0 to {n - 1}, the place of the choice in the question file"
        )
    return choice


def _answer(given, mode, where, question, hw):
    text, choice = given.get("text"), given.get("choice")
    if choice is not None:
        _choice(choice, question, "part", f"{where}.choice")
    if mode in (GT_SPANS, GT_ANSWER):
        correct = question.correct
        right = question.answer_choices[correct]
        if choice not in (None, correct) or (text is not None and text.strip() != right.strip()):
            raise Invalid(f"{where} is not the correct answer {show(right)}; give that, or another mode")
        text, choice = right if text is None else text, correct
    elif mode == OWN:
        choice = _same_text(text, question) if choice is None else choice
        text = question.answer_choices[choice] if text is None and choice is not None else text
    elif choice is not None:
        raise Invalid(f"{where}.choice is {choice}; leave it out, generated answers are free text")
    text = text or ""
    spans = tuple(_span(s, f"{where}.spans[{i}]", text, hw) for i, s in enumerate(given.get("spans", ())))
    bio = given.get("bio_counts")
    return Answer(text, spans, choice, given.get("span_counts"), bio and tuple(map(tuple, bio)))


def _span(given, where, text, hw):
    char = given.get("char")
    if char is not None and (not char[0] <= char[1] <= len(text) or text[slice(*char)] != given["phrase"]):
        raise Invalid(f"{where}.char is {char}, where the answer does not say {show(given['phrase'])}; give its place, or null")
    mask = empty_mask(hw) if given["mask"] is None else run_lengths(given["mask"], f"{where}.mask", hw)
    status = given.get("status", "ok")
    if status == "ok" and not rle_area(mask["counts"], hw):
        status = "empty_mask"
    raw = None if given.get("raw") is None else _float(given["raw"], f"{where}.raw")
    return Span(
        given["phrase"], mask, None if char is None else tuple(char), given.get("part"), given.get("score"), raw, status
    )


def empty_mask(hw):
    """Run lengths of a mask without a pixel."""
    return encode_rle(np.zeros(hw, bool))


def run_lengths(mask, where, hw):
    """A mask of the file -> {"size": [H, W], "counts": str} of the image's size. Raises Invalid when it is none."""
    if tuple(mask["size"]) != tuple(hw):
        raise Invalid(f"{where}.size is {show(mask['size'])}, but the image is {list(hw)}; give masks of the upright image")
    try:
        if "polygons" in mask:
            return encode_coco(mask["polygons"], hw)
        if isinstance(mask["counts"], str):
            rle_area(mask["counts"], hw)
            return {"size": list(hw), "counts": mask["counts"]}
        return encode_rle(decode_rle(mask["counts"], hw))
    except ValueError as error:
        raise Invalid(f"{where}: {error}; encode the mask again") from error
