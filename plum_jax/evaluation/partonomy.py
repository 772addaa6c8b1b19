"""PARTONOMY: question and prediction -> record, one line of instances.jsonl, with all protocols side by side (D 5.1 to D 5.9).

Predictions come from `plum evaluate` or from any other model; nothing here needs jax. What follows from the records,
results.json and the summary of a run, is in `partonomy_results`, whose names are here too.
"""

from plum_jax.errors import UserError
from plum_jax.evaluation import baselines, grounding, mask_relations
from plum_jax.evaluation.choosing import PUBLISHED, PUBLISHED_MEASURE, choices_of  # noqa: F401
from plum_jax.evaluation.part_names import PartLookup, by_rules, matches
from plum_jax.evaluation.partonomy_results import (  # noqa: F401, one place to look for what callers need
    IDENTIFICATION,
    SUMMARY_KEYS,
    by_type,
    calibration_pairs,
    counts,
    protocols,
    summary,
)
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, OWN
from plum_jax.evaluation.targets import targets_of

DEFAULTS = {
    "mc_score": "answer_mean",
    "tie": "wrong",
    "empty_union": "one",
}  # of the switches of config.eval that scoring reads


class Scorer:
    """Question and Prediction -> record.

    Args:
      split: for the ids. source: the question file, for messages.
      settings: {"mc_score", "tie", "empty_union"}, values of the switches of config.eval with these names; others are ignored.
      synonyms: partonomy.synonyms.SynonymKey for what is compared by rules, or None.
    """

    def __init__(self, split, source, settings=DEFAULTS, synonyms=None):
        self.split, self.source, self.synonyms = split, source, synonyms
        self.settings = {**DEFAULTS, **settings}

    def score(self, question, prediction, hw):
        """One record of instances.jsonl.

        Args:
          question: records.Question. prediction: its Prediction. hw: size of the upright image; unused when it was skipped.

        Raises:
          UserError: a target mask cannot be read, or a mask has another size than the image.
        """
        record = {
            "instance_id": f"{self.split}/{prediction.index:06d}",
            "image_path": question.image_path,
            "image_label": question.image_label,
            "question_type": question.question_type,
        }
        if prediction.skipped:
            return {**record, "skipped": prediction.skipped}
        targets = targets_of(question, hw, self.source, prediction.index)
        _check_sizes(prediction, targets.hw)
        parts = list(question.correct_parts)
        return {
            **record,
            **_asked(question),
            **self._choices(question, prediction),
            "gt_parts": parts,
            "gt_masks": [targets.masks[part] for part in parts],
            "gt_areas": [targets.areas[part] for part in parts],
            "gt_overlap": grounding.numbers(mask_relations.sibling_overlap([targets.masks[part] for part in parts])),
            "baselines": self._baselines(parts, targets, prediction.index),
            **self._blocks(question, prediction.answers, parts, targets),
        }

    def _choices(self, question, prediction):
        """Scores, and the choices by the rule of the settings (end to end) and by the published rule."""
        own = prediction.answers.get(OWN)
        ours = choices_of(question, prediction, self.settings["mc_score"], self.settings["tie"], own=own, end_to_end=True)
        theirs = choices_of(question, prediction, *PUBLISHED)
        scores = prediction.choice_scores
        return {
            "scores": scores.get("part") or {},
            "object_scores": scores.get("object"),
            "second_scores": scores.get("second_after_predicted"),
            "predicted": ours["part"],
            "predicted_published": theirs["part"],
            "object_predicted": ours["object"],
            "object_predicted_published": theirs["object"],
            "part_matches_rules": {
                "end_to_end": self._matches(question, ours["part"]),
                "published": self._matches(question, theirs["part"]),
            },
        }  # fmt: skip

    def _matches(self, question, choice):
        """[matches, predicted, references] of part names compared by rules (D 5.4)."""
        if choice is None:
            return None
        said, wanted = question.answer_parts[choice], question.correct_parts
        return [matches(said, wanted, lambda name: by_rules(name, self.synonyms)), len(said), len(wanted)]

    def _baselines(self, parts, targets, seed):
        masks = [targets.masks[part] for part in parts]
        found = baselines.scores(masks, targets.region, targets.hw, seed, empty_union=self.settings["empty_union"])
        return {name: grounding.numbers(ious) for name, ious in found.items()}

    def _blocks(self, question, answers, parts, targets):
        """The four protocols; None where the prediction has no answer of that mode."""
        policy, lookup = self.settings["empty_union"], PartLookup(targets.masks, self.synonyms)
        blocks = {"published": None, "middle": None, "end_to_end": None, "generation": None}
        if GT_SPANS in answers:
            blocks["published"] = grounding.published(answers[GT_SPANS], parts, targets, policy)
        for name, mode in (("middle", GT_ANSWER), ("end_to_end", OWN)):
            if mode in answers:
                blocks[name] = grounding.named(answers[mode], question, targets, lookup, policy)
        if GENERATED in answers:
            block = grounding.named(answers[GENERATED], question, targets, lookup, policy, rules=True)
            blocks["generation"] = {**block, "named_parts": grounding.named_parts(block, parts, self.synonyms)}
        return blocks


def score_instance(question, prediction, hw, settings=DEFAULTS, *, split="", source="questions"):
    """`Scorer.score` of one question."""
    return Scorer(split, source, settings).score(question, prediction, hw)


def _check_sizes(prediction, hw):
    """The COCO library takes masks of different sizes without a word."""
    for answer in prediction.answers.values():
        for span in answer.spans:
            size = tuple(span.mask["size"])
            if size != hw:
                raise UserError(
                    f"prediction of question {prediction.index}: mask of {span.phrase!r} is {size[0]} x {size[1]}, its image "
                    f"{hw[0]} x {hw[1]}; give masks at the size of the upright image"
                )


def _asked(question):
    """What was asked, and what is right."""
    asked = {"part": question.question, "object": question.object_question}
    order = ("object", "part") if question.question_type == "whole_to_part" else ("part", "object")
    return {
        "questions": [asked[kind] for kind in order if asked[kind]],
        "choices": list(question.answer_choices),
        "choice_parts": [list(names) for names in question.answer_parts],
        "correct": question.correct,
        "object_choices": None if question.object_answer_choices is None else list(question.object_answer_choices),
        "object_correct": question.object_correct,
        "highlight_box": None if question.highlight_box is None else list(question.highlight_box),
    }
