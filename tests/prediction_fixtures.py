"""Random questions with predictions for them, without images or a model: what scoring tests share."""

import numpy as np

from data_pipelines.conversation import join_parts
from data_pipelines.partonomy.records import TWO_TURN, parse_question
from plum_jax import coco
from plum_jax.evaluation.choosing import MEASURES
from plum_jax.evaluation.prediction import MODES, Answer, Prediction, Span

WORDS = ("base", "handle", "lid", "spout", "wheel", "wing")


def mask(rng, hw):
    """Anything from empty to full, blobs mostly."""
    kind = rng.integers(6)
    found = np.zeros(hw, bool)
    if kind == 1:
        found[:] = True
    elif kind > 1:
        top, left = rng.integers(hw[0]), rng.integers(hw[1])
        found[top : top + rng.integers(1, hw[0] + 1), left : left + rng.integers(1, hw[1] + 1)] = True
        found ^= rng.random(hw) < (0.2 if kind == 2 else 0.0)
    return found


def question(rng, index, kind="identification_with_label", hw=(7, 9), masks=None):
    """A Question about 1 to 4 parts, or those of `masks`, correct choice anywhere. -> (Question, {part: bool[H, W]})."""
    names = sorted(rng.choice(WORDS, rng.integers(1, 5), replace=False).tolist())
    masks = masks or {part: mask(rng, hw) for part in names}
    parts = list(masks)
    lists = [parts, [*parts, "tail"], ["tail"], parts[:1] + ["horn"], ["horn", "tail"]]
    order = rng.permutation(5)
    entry = {
        "image_path": f"images/{index % 7}.png", "image_label": "pot", "question": "What parts?", "question_type": kind,
        "answer_choices": [f"The pot has: {join_parts(lists[i])}." for i in order],
        "answer_types": ["correct" if i == 0 else "incorrect" for i in order],
        "answer_parts": [lists[i] for i in order],
        "segmentations": {part: [coco.encode(m)] for part, m in masks.items()},
    }  # fmt: skip
    if kind in TWO_TURN:
        names = ["pot", "cup", "jar", "can", "box"]
        entry.update(
            object_question="What is it?",
            object_answer_choices=[f"It is a {names[i]}." for i in order],
            object_answer_types=["correct" if i == 0 else "incorrect" for i in order],
            object_answer_classes=[names[i] for i in order],
        )
    return parse_question(entry, "questions.json", index), masks


def prediction(rng, question, index, hw=(7, 9), modes=MODES, ties=False):
    """A Prediction with any number of spans in each answer, whatever they name, and scores with or without ties."""

    def scores(count):
        values = rng.integers(0, 3, (3, count)) / 2 if ties else rng.random((3, count))
        return {name: [float(x) for x in row] for name, row in zip(MEASURES, values, strict=True)}

    choice_scores = {"part": scores(len(question.answer_choices))}
    if question.object_answer_choices:
        choice_scores["object"] = scores(len(question.object_answer_choices))
        second = question.object_answer_choices if question.question_type == "part_to_whole" else question.answer_choices
        choice_scores["second_after_predicted"] = scores(len(second))
    answers = {}
    for mode in modes:
        choice = {MODES[2]: int(rng.integers(5)), MODES[3]: None}.get(mode, question.correct)
        text = "A lid and a wheel." if choice is None else question.answer_choices[choice]
        names = rng.choice([*WORDS, "tail"], rng.integers(0, 6))
        if mode == MODES[0]:
            names = list(question.correct_parts)[: rng.integers(0, 5)]
        spans = tuple(span(rng, str(name), hw) for name in names)
        counts = {"matched": min(1, len(spans)), "predicted": len(spans), "target": 2}
        answers[mode] = Answer(text, spans, choice, counts, ((5, 6), (1, 2), (0, 0)))
    return Prediction(index, question.image_path, question.question_type, choice_scores, answers)


def span(rng, name, hw, **fields):
    found = mask(rng, hw)
    score = float(rng.random())
    status = "ok" if found.any() or rng.random() < 0.5 else "empty_mask"
    return Span(**{"phrase": name, "mask": coco.encode(found), "score": score, "raw": score, "status": status, **fields})
