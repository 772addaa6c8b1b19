"""Questions of the other benchmarks and what a model did with them -> one scored record a question. NumPy only.

A mask question has up to two protocols: `teacher_forced`, the answer with its span was given (mode gt_answer_gt_spans of a
prediction), and `open`, the model answered freely (mode generated) and the masks of all its spans are united.
"""

import dataclasses

from plum_jax import coco
from plum_jax.errors import UserError
from plum_jax.evaluation.asked import MASK
from plum_jax.evaluation.mask_tables import OPEN, TEACHER_FORCED
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS
from plum_jax.evaluation.segments import compare, union_of
from plum_jax.evaluation.vqa_files import GQA, TEXTVQA
from plum_jax.evaluation.word_metrics import contains, exact_match, is_clear, soft_accuracy, yes_or_no

PROTOCOL = {GT_SPANS: TEACHER_FORCED, GENERATED: OPEN}
NO_PREDICTION = "no_prediction"
GRES_PIXELS = 50  # a mask of fewer pixels is none in the tables of GRES, whatever the method


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a score depends on beside questions and predictions."""

    no_target_pixels: int | None = None  # None: 50 for gRefCOCO as in GRES, else 0
    ignore255_as_fg: bool = False
    metric: str = "official"  # or "contains": the substring metric of the reference as well


def score(questions, predictions, settings, source, *, ignore_missing=False):
    """Yields a record for every question.

    Args:
      questions: iterable of Asked. predictions: {index of the question: Prediction}. settings: Settings.
      source: file of the predictions, for messages. ignore_missing: a question without a prediction is skipped.

    Raises:
      UserError: a question without a prediction, a prediction without a question, a mask of another size, or answers in
        some modes for some questions only: the means of the protocols would be of different samples.
    """
    known, modes = 0, {}
    for index, question in enumerate(questions):
        if index not in predictions and not ignore_missing:
            fix = "give every question a line, or pass --ignore-missing"
            raise UserError(f"{source}: has nothing about question {index}, {question.id}; {fix}")
        about = {key: getattr(question, key) for key in ("id", "image_path", "dataset", "kind", "name")}
        record = {"index": index, **about, "groups": list(question.groups)}
        prediction = predictions.get(index)
        if prediction is None:
            yield {**record, "skipped": NO_PREDICTION}
            continue
        known += 1
        if prediction.skipped is not None:
            yield {**record, "skipped": prediction.skipped}
            continue
        found = {mode for mode in PROTOCOL if mode in prediction.answers}
        wanted = modes.setdefault((question.kind, question.given is None), found)
        if found != wanted or not found or (question.kind != MASK and GENERATED not in found):
            raise UserError(
                f"{source}: question {index}, {question.id}, has answers in {', '.join(sorted(found)) or 'no mode'}; give "
                f"every question {', '.join(sorted(wanted)) or GENERATED}"
            )
        try:
            about_answers = _masks if question.kind == MASK else _words
            yield {**record, **about_answers(question, prediction, settings)}
        except ValueError as error:
            raise UserError(
                f"{source}: question {index}, {question.id}: {error}; give masks at the size of the image"
            ) from error
    extra = len(predictions) - known
    if extra:
        raise UserError(f"{source}: has {extra} predictions of questions that are not in the reference; check the files")


def _masks(question, prediction, settings):
    """-> {"has_target", protocol: {numbers of `compare`, "has_span", ...}}."""
    least = settings.no_target_pixels
    if least is None:
        least = GRES_PIXELS if question.dataset == "grefcoco" else 0
    target, ignore = (None if rle is None else coco.decode(rle) for rle in (question.target, question.ignore))
    result = {"has_target": target is not None}
    for mode, protocol in PROTOCOL.items():
        answer = prediction.answers.get(mode)
        if answer is None:
            continue
        sizes = [rle["size"] for rle in (question.target, question.ignore, *(s.mask for s in answer.spans)) if rle is not None]
        mask = union_of(answer.spans, sizes[0] if sizes else (1, 1))
        numbers = compare(
            mask, target, ignore, least_pixels=least, ignored_as_foreground=settings.ignore255_as_fg
        )  # fmt: skip
        statuses = [span.status for span in answer.spans]
        result[protocol] = {**numbers, "has_span": bool(statuses), "statuses": statuses, "answer": answer.text}
    return result


def _words(question, prediction, settings):
    """-> {"answer", "references", "official", ...}."""
    answer = prediction.answers[GENERATED].text
    result = {"answer": answer, "references": list(question.references)}
    if question.dataset == TEXTVQA:
        result["official"] = soft_accuracy(answer, question.references)
    elif question.dataset == GQA:
        result["official"] = float(exact_match(answer, question.references[0]))
    else:
        said = yes_or_no(answer)
        result.update(official=float(said == question.references[0]), said=said, clear=is_clear(answer))
    if settings.metric == "contains":
        result["contains"] = contains(answer, question.references)
    return result
