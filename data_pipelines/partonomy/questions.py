"""PARTONOMY questions from the visible parts of an object and a part graph: all ten types of D 1.6 (arXiv 2505.20759).

What differs from the reference, and why, is D 7.1: comparisons are symmetric and exclude the object itself (D4), everything
is sorted before a generator touches it (D5), parts are compared by a rule and never by a language model (D6), pairs are
drawn lazily (D7), three mutations are possible (D8b; `max_mutations=2` is the reference), and the correct choice stands
anywhere. Answers list the object's own part names, which are the keys of its masks, whatever they were compared as (D28).
"""

import collections
import dataclasses
import functools
import re

from data_pipelines.conversation import join_parts
from data_pipelines.partonomy.records import QUESTION_TYPES, TWO_TURN

NO_COMPARISON = "no object has the parts to compare with"  # why an instance has no question of a type
TOO_FEW_PARTS = "too few other parts for the wrong answers"
TOO_FEW_OBJECTS = "too few other objects for the wrong answers"
OBJECT_QUESTION = "What is the object in the image?"
OBJECT_ANSWER = "It is {object}."
TEMPLATES = {  # first word of the question type -> question, answer (D 3.1)
    "identification": (
        "What visible parts does the {x} in the image have?",
        "The {x} in the image has the following visible parts: {parts}.",
    ),
    "positive": (
        "What visible parts does the {x} in the image have in common with {c}?",
        "The {x} in the image has the following visible parts in common with {c}: {parts}.",
    ),
    "negative": (
        "What visible parts does the {x} in the image have which {c} does not have?",
        "The {x} in the image has the following visible parts which {c} does not: {parts}.",
    ),
    "difference": (
        "What visible parts does the {x} in the image have in common with {c} but not with {c2}?",
        "The {x} in the image has the following visible parts in common with {c} but not with {c2}: {parts}.",
    ),
}
AN = re.compile(
    r"(?=[aeiou])(?!one\b|once\b|eu|ew|ufo|ukulele|uni(?!n|m)|us[eu]|usb|ut[ei]|urin)|hour|heir|honest|honou?r", re.I
)
SINGULAR = ((r"(ss|us|is)$", r"\1"), (r"ies$", "y"), (r"(x|ch|sh|ss|z)es$", r"\1"), (r"ves$", "f"), (r"s$", ""))


@dataclasses.dataclass(frozen=True)
class QuestionConfig:
    """How wrong answers are made (D 3.2)."""

    wrong_answers: int = 4
    max_mutations: int = 3  # 2 is what the reference does
    tries: int = 20  # for each wrong answer
    negative_needs_common_part: bool = True


def with_article(noun):
    """'airplane' -> 'an airplane', by sound: 'an hour glass', 'a unicycle'. Plurals get 'a' too, as in the released text."""
    acronym = re.match(r"[A-Z]{2,}\b", noun)
    vowel = acronym and noun[0] in "AEFHILMNORX" and noun not in ("SUV", "UFO") if acronym else AN.match(noun)
    return f"{'an' if vowel else 'a'} {noun}"


@functools.cache
def canonical(part):
    """The key by which parts are compared: lower case, no article, last word singular (D 3.8)."""
    text = re.sub(r"^(a|an|the) ", "", " ".join(part.lower().split()))
    for pattern, replacement in SINGULAR:
        changed, count = re.subn(pattern, replacement, text)
        if count:
            return changed
    return text


def compare(parts, others, key=canonical):
    """-> (parts that others has too, parts that others lacks), both sorted, both in the words of `parts`."""
    keys = {key(part) for part in others}
    return sorted(p for p in parts if key(p) in keys), sorted(p for p in parts if key(p) not in keys)


class QuestionGenerator:
    """Makes the questions about one instance. All randomness comes from the generator that is passed to `generate`.

    Args:
      part_graph: {object: parts that it can have}.
      part_sampler, object_sampler: of `samplers`.
      config: QuestionConfig.
      key: part name -> what it is compared by: `canonical`, or a `SynonymKey`.
    """

    def __init__(self, part_graph, part_sampler, object_sampler, config=None, key=canonical):
        self.part_graph = {label: sorted(part_graph[label]) for label in sorted(part_graph)}
        self.part_sampler, self.object_sampler, self.key = part_sampler, object_sampler, key
        self.config = config or QuestionConfig()
        self.keys = {label: {key(part) for part in parts} for label, parts in self.part_graph.items()}
        pairs = {a: [(b, self.keys[b]) for b in self.part_graph if b != a] for a in self.part_graph}
        self.intersects = {a: [b for b, other in row if self.keys[a] & other] for a, row in pairs.items()}
        self.minus = {a: [b for b, other in row if self.keys[a] - other] for a, row in pairs.items()}
        self.same = collections.defaultdict(set)  # key -> names of the data
        for part in part_sampler.vocabulary:
            self.same[key(part)].add(part)

    def generate(self, label, visible, question_type, rng):
        """One question about an instance, as the fields of D 1.5 without image and masks, or None where there is none."""
        return self.attempt(label, visible, question_type, rng)[0]

    def attempt(self, label, visible, question_type, rng):
        """-> (question, "") or (None, why there is none).

        Args:
          label: object label, a key of the part graph.
          visible: names of the visible parts.
        """
        if question_type not in QUESTION_TYPES:
            raise ValueError(f"question type {question_type!r} is not one of {QUESTION_TYPES}")
        visible = sorted(set(visible))
        kind = "identification" if question_type in TWO_TURN else question_type.split("_")[0]
        labelled = question_type.endswith("with_label") or question_type == "whole_to_part"
        name = label if labelled else "object"
        reason = "no visible part" if not visible else NO_COMPARISON
        for concepts, correct, related in self._candidates(kind, label, visible, question_type in TWO_TURN, rng):
            if not correct:
                continue
            never = {part for one in correct for part in (one, *self.same.get(self.key(one), ()))}  # nor a synonym
            wrong = mutations(correct, related, never, self.part_sampler, self.config, rng)
            if wrong is None:
                reason = TOO_FEW_PARTS
                continue
            words = dict(zip(("c", "c2"), map(with_article, concepts), strict=False), x=name)
            question = self._part_question(question_type, TEMPLATES[kind], words, correct, wrong, rng)
            if question_type in TWO_TURN and not self._add_object(question, label, rng):
                return None, TOO_FEW_OBJECTS
            return question, ""
        return None, reason

    def _candidates(self, kind, label, visible, two_turn, rng):
        """Yields (comparison concepts, correct parts, related parts) in random order."""
        own = self.part_graph[label]
        if kind == "identification":
            yield (), visible, visible if two_turn else own
        elif kind == "difference":
            for first in shuffled(self.intersects[label], rng):
                common, _ = self._compare(visible, first)
                for second in shuffled(self.minus[label], rng) if common else ():
                    if second != first:
                        related = sorted({*own, *self.part_graph[first], *self.part_graph[second]})
                        yield (first, second), self._compare(common, second)[1], related
        else:
            for concept in shuffled((self.intersects if kind == "positive" else self.minus)[label], rng):
                common, rest = self._compare(visible, concept)
                related = sorted({*own, *self.part_graph[concept]})
                if kind == "positive":
                    yield (concept,), common, related
                elif common or not self.config.negative_needs_common_part:
                    yield (concept,), rest, related

    def _compare(self, parts, label):
        """As `compare` with what the object `label` has; `parts` is sorted."""
        keys, key = self.keys[label], self.key
        return [p for p in parts if key(p) in keys], [p for p in parts if key(p) not in keys]

    def _part_question(self, question_type, template, words, correct, wrong, rng):
        choices = [list(correct), *wrong]
        order = rng.permutation(len(choices))
        return {
            "question": template[0].format(**words),
            "question_type": question_type,
            "answer_choices": [template[1].format(**words, parts=join_parts(choices[k])) for k in order],
            "answer_types": ["incorrect" if k else "correct" for k in order],
            "answer_parts": [choices[k] for k in order],
            "object_question": None,
            "object_answer_choices": None,
            "object_answer_types": None,
            "object_answer_classes": None,
        }

    def _add_object(self, question, label, rng):
        """Adds the object question; False when there are too few other objects."""
        objects = [label, *self.object_sampler.sample(label, self.config.wrong_answers, rng)]
        if len(objects) <= self.config.wrong_answers:
            return False
        order = rng.permutation(len(objects))
        question["object_question"] = OBJECT_QUESTION
        question["object_answer_choices"] = [OBJECT_ANSWER.format(object=with_article(objects[k])) for k in order]
        question["object_answer_types"] = ["incorrect" if k else "correct" for k in order]
        question["object_answer_classes"] = [objects[k] for k in order]
        return True


def shuffled(items, rng):
    return [items[k] for k in rng.permutation(len(items))]


def mutations(correct, related, never, sampler, config, rng):
    """`wrong_answers` different sorted part lists near `correct`, none equal to it or empty; None when it cannot be done.

    Parts of `never` are not added: the correct ones and those that mean the same.
    """
    correct, wrong = tuple(sorted(correct)), []
    for _ in range(config.wrong_answers):
        for _ in range(config.tries):
            mutant = mutate(correct, related, never, sampler, config.max_mutations, rng)
            if mutant and mutant != correct and mutant not in wrong:
                wrong.append(mutant)
                break
        else:
            return None
    return [list(parts) for parts in wrong]


def mutate(correct, related, never, sampler, max_mutations, rng):
    """`correct` after 1 to `max_mutations` operations add, delete and replace (D 3.5), as a sorted tuple.

    A part takes part in one operation at most, and those of `never` are not added. An operation that cannot be done is left
    out.
    """
    parts, used = list(correct), set()
    for operation in rng.integers(3, size=rng.integers(1, max_mutations + 1)):
        old = new = None
        if parts and operation > 0:  # delete or replace; with nothing left only adding is possible
            free = [p for p in parts if p not in used]
            if not free:
                continue
            old = free[rng.integers(len(free))]
        if old is None or operation == 2:
            new = sampler.sample(parts, related, used.union(parts, never), rng)
            if new is None:
                continue
        parts = sorted([p for p in parts if p != old] + ([] if new is None else [new]))
        used.update(p for p in (old, new) if p is not None)
    return tuple(parts)
