"""Prediction files of the published evaluation code (D 5.9) -> Predictions, without taking over its pitfalls.

Its masks are those of the correct answer, in the order of the text, one pair of masks a part; the labels on them are those of
the annotation, whatever the model named (D37). The chosen answer is a sentence, not an index (D30). What the code skipped is
not in the file, but may be in its metrics (D29).
"""

from plum_jax.evaluation.any_model import run_lengths
from plum_jax.evaluation.prediction import GT_SPANS, Answer, Prediction, Span
from plum_jax.evaluation.schema import Invalid, check, show

MARK = "parts_answer_choices"  # a field that only these files have


def is_reference(entry):
    """Whether an entry is one of the published code."""
    return isinstance(entry, dict) and MARK in entry


def to_prediction(entry, questions, size_of, taken):
    """Entry -> Prediction, with the answer of the published protocol only. Raises Invalid.

    Args:
      entry, questions, size_of: as in any_model. taken: indices that have a prediction; of questions that are equal in all
        that the entry tells, the first free one is meant.
    """
    check(entry, "reference_prediction")
    index = _find(entry, questions, taken)
    question = questions.questions[index]
    predicted = {"part": _chosen(entry, question)}
    if question.object_answer_choices:
        predicted["object"] = _chosen_object(entry, question)
    confidences = entry.get("mask_confidences") or ()
    spans = []
    for i, mask in enumerate(entry["predicted_masks"] or ()):
        part = entry["gt_parts"][i] if i < len(entry["gt_parts"]) else None
        rle = run_lengths(mask, f"$.predicted_masks[{i}]", size_of(index))
        raw = confidences[i] if i < len(confidences) else None
        spans.append(Span(part or "", rle, part=part, raw=raw))
    answer = Answer(question.answer_choices[question.correct], tuple(spans), question.correct)
    return Prediction(index, question.image_path, question.question_type, {}, {GT_SPANS: answer}, predicted)


def target_counts(entry):
    """Run lengths of the target masks that the file itself was scored against; None where they are not plain text."""
    masks = entry.get("gt_masks")
    if not isinstance(masks, list) or not all(isinstance(mask, dict) for mask in masks):
        return None
    return [mask.get("counts") for mask in masks]


def _find(entry, questions, taken):
    """Index of the question, by image, type and texts; then by object and correct answer, which the file has as well."""
    found = None
    for text in entry["questions"]:
        same = set(questions.matching(entry["image_path"], entry["question_type"], text))
        found = same if found is None else found & same
    if not found:
        about = f"{entry['question_type']} question about {entry['image_path']}"
        raise Invalid(
            f"$.questions is {show(entry['questions'])}, which is no {about}; give the question file it was made from"
        )
    label = entry.get("gt_object")
    if label is not None:
        found = {i for i in found if questions.questions[i].image_label == label} or found
    correct = entry["gt_parts_answer"].strip()
    right = sorted(i for i in found if _correct(questions.questions[i]) == correct)
    if not right:
        have = show(_correct(questions.questions[min(found)]))
        raise Invalid(
            f"$.gt_parts_answer is {show(correct)}, but the question file says {have}; give the file it was made from"
        )
    choices = sorted(choice.strip() for choice in entry[MARK])
    right = [i for i in right if sorted(c.strip() for c in questions.questions[i].answer_choices) == choices]
    if not right:
        raise Invalid(f"$.{MARK} are not the choices of the question file; give the file that it was made from")
    return next((i for i in right if i not in taken), right[0])


def _correct(question):
    return question.answer_choices[question.correct].strip()


def _chosen(entry, question):
    """Place of the chosen sentence among the choices; of equal sentences the one whose parts the file names."""
    said = entry["predicted_parts_answer"].strip()
    same = [i for i, choice in enumerate(question.answer_choices) if choice.strip() == said]
    if not same:
        raise Invalid(f"$.predicted_parts_answer is {show(said)}, which is none of the choices; give one of them")
    named = [i for i in same if list(question.answer_parts[i]) == entry.get("predicted_parts")]
    return (named or same)[0]


def _chosen_object(entry, question):
    """Place of the chosen object, None where the file has no answer to that question."""
    said = entry.get("predicted_object_answer")
    if said is None:
        return None
    choices = [choice.strip() for choice in question.object_answer_choices]
    if said.strip() not in choices:
        raise Invalid(f"$.predicted_object_answer is {show(said)}, which is none of the choices; give one of them")
    same = [i for i, choice in enumerate(choices) if choice == said.strip()]
    named = [i for i in same if question.object_answer_classes[i] == entry.get("predicted_object")]
    return (named or same)[0]
