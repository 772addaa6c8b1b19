"""Prediction files and the questions they are about -> one Prediction a question, with an account of what is missing."""

import collections
import dataclasses

from data_pipelines.masks import decode_segmentation
from plum_jax.errors import UserError
from plum_jax.evaluation import any_model, reference_file
from plum_jax.evaluation.any_model import empty_mask
from plum_jax.evaluation.choosing import KINDS
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS, OWN, Answer, Prediction, Span
from plum_jax.evaluation.question_index import QuestionIndex
from plum_jax.evaluation.reading import read_predictions
from plum_jax.evaluation.schema import Invalid

MISSING = "no_prediction"  # reason of a question that no entry is about
NOT_ANSWERED = "type_not_answered"  # reason of a question of a type that no entry is about


@dataclasses.dataclass(frozen=True)
class Claim:
    """The metrics that a file of the published code says it has, and what they are of."""

    path: str
    metrics: dict  # group -> {key: number}
    indices: list  # questions of its entries, in its order
    target_counts: list  # for each, run lengths of the target masks in the file, or None


@dataclasses.dataclass(frozen=True)
class Collected:
    """`predictions`: {index: Prediction}, as given. `files`: [{"path", "form", "predictions"}]."""

    predictions: dict
    claims: list
    files: list


def collect(paths, questions, source, progress=lambda items, label: items):
    """Reads prediction files of any of the two forms.

    Args:
      questions: [records.Question] of the whole question file, `source`. progress: (items, label) -> the same items.

    Raises:
      UserError: an entry is wrong, names no question, or names one that has a prediction.
    """
    index, hw = QuestionIndex(questions), ImageSizes(questions, source)
    found, origin, claims, files = {}, {}, [], []
    for path in paths:
        file = read_predictions(path)
        indices, targets, forms = [], [], set()
        for where, entry in progress(file.entries, file.path.name):
            foreign = reference_file.is_reference(entry)
            try:
                if foreign:
                    made = reference_file.to_prediction(entry, index, hw, found)
                    targets.append(reference_file.target_counts(entry))
                else:
                    made = any_model.to_prediction(entry, index, hw, file.header.get("better"))
            except Invalid as error:
                raise UserError(f"{file.path}: {where}: {error}") from error
            if made.index in found:
                raise UserError(
                    f"{file.path}: {where}: is about question {made.index}, as {origin[made.index]} is; take one of them out"
                )
            found[made.index], origin[made.index] = made, f"{where} of {file.path}"
            indices.append(made.index)
            forms.add("published" if foreign else "any_model")
        files.append({"path": str(file.path), "form": " and ".join(sorted(forms)), "predictions": len(indices)})
        if isinstance(file.header.get("metrics"), dict) and len(targets) == len(indices) > 0:
            claims.append(Claim(str(file.path), file.header["metrics"], indices, targets))
    return Collected(found, claims, files)


class ImageSizes:
    """index -> (height, width) of the image of a question, from the masks of its parts. UserError where they disagree."""

    def __init__(self, questions, source):
        self.questions, self.source, self._known = questions, source, {}

    def __call__(self, index):
        if index not in self._known:
            self._known[index] = self._read(index)
        return self._known[index]

    def _read(self, index):
        masks = [(part, entry) for part, entries in self.questions[index].segmentations.items() for entry in entries]
        try:
            sizes = {_size(entry): part for part, entry in masks}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.source}: entry {index}: {error}; correct the segmentations") from error
        if len(sizes) != 1:
            said = ", ".join(f"{part} {list(hw)}" for hw, part in sorted(sizes.items()))
            raise UserError(
                f"{self.source}: entry {index}: masks of one image have the sizes {said}; correct the segmentations"
            )
        return next(iter(sizes))


def _size(entry):
    inner = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
    size = inner.get("size") if isinstance(inner, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return tuple(size)
    return decode_segmentation(entry).shape  # says what is wrong with it


@dataclasses.dataclass(frozen=True)
class ToScore:
    """A question's prediction as it is scored. `unanswered`: "part" and "object" where a choice was due and none was given."""

    prediction: Prediction
    unanswered: tuple = ()


def complete(questions, collected, hw, ignore_missing):
    """The predictions to score, in file order, and the account of what is missing.

    Whatever the predictions of a question type give, a choice or an answer of some mode, is due for every question of the
    type. What is missing counts as a wrong choice and as masks without a pixel; with `ignore_missing` it is left out. Types
    without any prediction are left out: no number of another type depends on them.

    Args:
      questions: [records.Question] of the file. hw: index -> (height, width).

    Returns:
      ([ToScore], {"predicted", "scored", "missing": {reason: questions}, "missing_counts_as": "wrong" or "left_out",
      "incomplete": {what: predictions that lack it}, "skipped": {reason: questions that are not scored}}).
    """
    due = collections.defaultdict(_Due)
    for prediction in collected.predictions.values():
        due[prediction.question_type].add(prediction)
    missing, skipped, incomplete = collections.Counter(), collections.Counter(), collections.Counter()
    chosen = []
    for index, question in enumerate(questions):
        if question.question_type not in due:
            skipped[NOT_ANSWERED] += 1
            continue
        prediction = collected.predictions.get(index)
        reason = MISSING if prediction is None else prediction.skipped
        if reason is not None:
            missing[reason] += 1
            if ignore_missing:
                skipped[reason] += 1
                continue
            prediction = Prediction(index, question.image_path, question.question_type, {}, {})
        wanted = due[question.question_type]
        modes, kinds = wanted.modes - prediction.answers.keys(), tuple(sorted(wanted.kinds - chosen_kinds(prediction)))
        if reason is None:
            incomplete.update([*modes, *(f"choice_of_{kind}" for kind in kinds)])
        if ignore_missing:
            modes, kinds = (), ()
        answers = {mode: _nothing(question, mode, hw(index), wanted.tagged) for mode in modes}
        chosen.append(ToScore(dataclasses.replace(prediction, answers={**prediction.answers, **answers}), kinds))
    counts = {
        "predicted": sum(p.skipped is None for p in collected.predictions.values()),
        "scored": len(chosen),
        "missing": dict(sorted(missing.items())),
        "missing_counts_as": "left_out" if ignore_missing else "wrong",
        "incomplete": dict(sorted(incomplete.items())),
        "skipped": dict(sorted(skipped.items())),
    }
    return chosen, counts


@dataclasses.dataclass
class _Due:
    """What the predictions of a question type give. `tagged`: some say how many of their spans have exact boundaries."""

    modes: set = dataclasses.field(default_factory=set)
    kinds: set = dataclasses.field(default_factory=set)
    tagged: bool = False

    def add(self, prediction):
        self.modes |= prediction.answers.keys()
        self.kinds |= chosen_kinds(prediction)
        self.tagged |= any(answer.span_counts is not None for answer in prediction.answers.values())


def chosen_kinds(prediction):
    """Those of "part" and "object" that a prediction chooses."""
    kinds = {kind for kind in KINDS if kind in prediction.choice_scores or kind in prediction.predicted}
    own = prediction.answers.get(OWN)
    return kinds | ({"part"} if own is not None and own.choice is not None else set())


def _nothing(question, mode, hw, tagged):
    """The answer of a model that says nothing. Where masks are paired by position it takes an empty mask a part to score 0."""
    if mode != GT_SPANS:
        counts = {"matched": 0, "predicted": 0, "target": len(question.correct_parts)}
        return Answer("", (), span_counts=counts if tagged and mode != GENERATED else None)
    empty = empty_mask(hw)
    spans = tuple(Span(part, empty, part=part, status="empty_mask") for part in question.correct_parts)
    return Answer(question.answer_choices[question.correct], spans, question.correct)
