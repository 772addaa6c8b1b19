"""Question generation: the exact texts, comparison sets, mutation rules, and independence of order and hash seed."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.partonomy.questions import (
    NO_COMPARISON,
    TOO_FEW_OBJECTS,
    TOO_FEW_PARTS,
    QuestionConfig,
    QuestionGenerator,
    canonical,
    compare,
    mutate,
    mutations,
    with_article,
)
from data_pipelines.partonomy.records import QUESTION_TYPES, TWO_TURN, parse_question, training_conversation
from data_pipelines.partonomy.samplers import ObjectSampler, PartSampler
from data_pipelines.partonomy.synonyms import SynonymKey

GRAPH = {
    "airplane": ["engine", "tail", "wheel", "wing"],
    "bird": ["beak", "leg", "tail", "wing"],
    "car": ["body", "door", "wheel", "window"],
    "chair": ["back", "leg", "seat"],
    "hour glass": ["base", "bulb"],
    "table": ["drawer", "leg", "top"],
}
INSTANCES = [parts for parts in GRAPH.values() for _ in range(3)] + [parts[:-1] for parts in GRAPH.values()]


@pytest.fixture(scope="module")
def generator():
    return make_generator()


def make_generator(**options):
    objects = ObjectSampler({"thing": sorted(GRAPH)}, GRAPH)
    return QuestionGenerator(GRAPH, PartSampler(INSTANCES), objects, QuestionConfig(**options))


def record(question):
    """Complete enough for the reader, which then checks it."""
    mask = [{"size": [2, 2], "counts": "02"}]
    parts = {part: mask for parts in GRAPH.values() for part in parts}
    return {**question, "image_path": "images/a.jpg", "image_label": "bird", "segmentations": parts}


def test_articles():
    for noun in (
        "airplane",
        "hour glass",
        "agricultural airplane",
        "umbrella",
        "egg",
        "oven",
        "heirloom chest",
        "honest clock",
    ):
        assert with_article(noun) == f"an {noun}"
    for noun in (
        "unicycle",
        "scissors",
        "SUV",
        "car",
        "utensil",
        "one-wheeler",
        "euro coin",
        "uniform",
        "hull",
        "yacht",
        "used car",
    ):
        assert with_article(noun) == f"a {noun}"
    assert with_article("uninhabited hut") == "an uninhabited hut"
    assert with_article("LED lamp") == "an LED lamp"


def test_parts_are_compared_by_a_rule():
    assert [canonical(p) for p in ("Wheels", "the wing", "axes", "glass", "bodies", "back  leg")] == [
        "wheel", "wing", "ax", "glass", "body", "back leg",
    ]  # fmt: skip
    assert compare(["wing", "Wheels", "tail"], ["wheel", "wing"]) == (["Wheels", "wing"], ["tail"])


def test_comparisons_are_symmetric_and_exclude_the_object_itself(generator):
    for table in (generator.intersects, generator.minus):
        assert all(label not in others for label, others in table.items())
    for a, others in generator.intersects.items():
        assert all(a in generator.intersects[b] for b in others)
    assert generator.intersects["bird"] == ["airplane", "chair", "table"]
    assert generator.intersects["hour glass"] == []


DIFFERENCE = (
    "have in common with an airplane but not with a chair?",
    ("in the image has the following visible parts in common with an airplane but not with a chair: tail, and wing."),
)
TEXTS = {
    "identification": (
        "What visible parts does the object in the image have?",
        "The object in the image has the following visible parts: leg, tail, and wing.",
    ),
    "identification_with_label": (
        "What visible parts does the bird in the image have?",
        "The bird in the image has the following visible parts: leg, tail, and wing.",
    ),
    "positive": (
        "What visible parts does the object in the image have in common with an airplane?",
        "The object in the image has the following visible parts in common with an airplane: tail, and wing.",
    ),
    "positive_with_label": (
        "What visible parts does the bird in the image have in common with an airplane?",
        "The bird in the image has the following visible parts in common with an airplane: tail, and wing.",
    ),
    "negative": (
        "What visible parts does the object in the image have which an airplane does not have?",
        "The object in the image has the following visible parts which an airplane does not: leg.",
    ),
    "negative_with_label": (
        "What visible parts does the bird in the image have which an airplane does not have?",
        "The bird in the image has the following visible parts which an airplane does not: leg.",
    ),
    "difference": (f"What visible parts does the object in the image {DIFFERENCE[0]}", f"The object {DIFFERENCE[1]}"),
    "difference_with_label": (f"What visible parts does the bird in the image {DIFFERENCE[0]}", f"The bird {DIFFERENCE[1]}"),
    "part_to_whole": (
        "What visible parts does the object in the image have?",
        "The object in the image has the following visible parts: leg, tail, and wing.",
    ),
    "whole_to_part": (
        "What visible parts does the bird in the image have?",
        "The bird in the image has the following visible parts: leg, tail, and wing.",
    ),
}


@pytest.mark.parametrize("question_type", QUESTION_TYPES)
def test_texts_are_those_of_the_benchmark(generator, question_type):
    want = TEXTS[question_type]
    for seed in range(100):
        made = generator.generate("bird", ["wing", "tail", "leg"], question_type, np.random.default_rng(seed))
        question = parse_question(record(made), "file", 0)
        if question.question == want[0]:
            break
    else:
        pytest.fail("the comparison never occurred")
    assert question.answer_choices[question.correct] == want[1]
    for sentence, parts in zip(question.answer_choices, question.answer_parts, strict=True):
        assert sentence.endswith(": " + (parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + ", and " + parts[-1]) + ".")
    if question_type in TWO_TURN:
        assert question.object_question == "What is the object in the image?"
        assert question.object_answer_choices[question.object_correct] == "It is a bird."
        assert question.object_answer_classes[question.object_correct] == "bird"
        assert len(set(question.object_answer_classes)) == 5
    else:
        assert question.object_question is None


def test_correct_parts_follow_the_definition(generator):
    for label, parts in GRAPH.items():
        for seed in range(20):
            rng = np.random.default_rng(seed)
            visible = sorted(p for p in parts if rng.random() < 0.7) or parts[:1]
            for question_type in QUESTION_TYPES:
                made = generator.generate(label, visible, question_type, rng)
                if made is not None:
                    check_definition(made, label, visible, question_type)


def check_definition(made, label, visible, question_type):
    correct = set(made["answer_parts"][made["answer_types"].index("correct")])
    compared = [other for other in GRAPH if with_article(other) in made["question"]]
    if question_type.startswith(("positive", "negative")):
        (concept,) = compared
        common = set(visible) & set(GRAPH[concept])
        assert concept != label
        assert common
        assert correct == (common if question_type.startswith("positive") else set(visible) - common)
    elif question_type.startswith("difference"):
        first, second = sorted(compared, key=lambda other: made["question"].index(with_article(other)))
        assert label not in (first, second)
        assert correct == (set(visible) & set(GRAPH[first])) - set(GRAPH[second])
    else:
        assert correct == set(visible)
    assert correct


def test_object_without_anything_in_common_gets_no_comparison(generator):
    rng = np.random.default_rng(0)
    for question_type in ("positive", "negative", "difference"):
        assert generator.generate("hour glass", ["base", "bulb"], question_type, rng) is None
    assert make_generator(negative_needs_common_part=False).generate("hour glass", ["base"], "negative", rng) is not None
    assert generator.generate("bird", [], "identification", rng) is None


def test_wrong_answers_are_different_sorted_not_empty_and_never_right(generator):
    for seed in range(300):
        correct = sorted(np.random.default_rng(seed).permutation(GRAPH["bird"])[: 1 + seed % 4].tolist())
        rng = np.random.default_rng(seed)
        wrong = mutations(correct, GRAPH["bird"], set(correct), generator.part_sampler, QuestionConfig(), rng)
        assert len({tuple(parts) for parts in wrong}) == 4
        for parts in wrong:
            assert parts
            assert parts == sorted(set(parts))
            assert parts != correct


def test_number_of_mutations_is_a_switch(generator):
    def most_changed(limit):
        rng, sizes = np.random.default_rng(0), set()
        for _ in range(2000):
            mutant = mutate(("leg", "tail", "wing"), [], set(), generator.part_sampler, limit, rng)
            sizes.add(len({"leg", "tail", "wing"} - set(mutant)))
        return max(sizes)

    assert most_changed(2) == 2
    assert most_changed(3) == 3


def test_impossible_wrong_answers_give_no_question():
    sampler = PartSampler([["a"], ["a"]])
    assert mutations(["a"], ["a"], {"a"}, sampler, QuestionConfig(), np.random.default_rng(0)) is None


def test_synonym_of_a_correct_part_is_never_added():
    parts = ["wheel", "wheels", "castor", "door", "roof", "seat", "hood"]
    sampler, graph = PartSampler([parts] * 2 + [["door"]]), {"car": parts, "cart": ["castor", "seat"]}
    plain = QuestionGenerator(graph, sampler, ObjectSampler({}, graph))
    told = QuestionGenerator(graph, sampler, ObjectSampler({}, graph), key=SynonymKey([["wheel", "castor"]]))
    added = {"plain": set(), "told": set()}
    for seed in range(100):
        for name, generator in (("plain", plain), ("told", told)):
            made = generator.generate("car", ["wheel"], "identification", np.random.default_rng(seed))
            added[name].update(part for names in made["answer_parts"] for part in names)
    assert added["plain"] == set(parts) - {"wheels"}
    assert added["told"] == set(parts) - {"wheels", "castor"}


def test_answers_list_the_objects_own_words_for_what_a_synonym_has_in_common():
    graph = {"car": ["door", "hood", "tyre"], "bike": ["bell", "saddle", "tire"], "cat": ["ear", "leg", "tail"]}
    key = SynonymKey([["tire", "tyre"], ["bonnet", "hood"]])
    generator = QuestionGenerator(graph, PartSampler(list(graph.values())), ObjectSampler({}, graph), key=key)
    assert generator.intersects == {"bike": ["car"], "car": ["bike"], "cat": []}
    made = generator.generate("car", graph["car"], "positive_with_label", np.random.default_rng(0))
    correct = made["answer_types"].index("correct")
    assert made["answer_parts"][correct] == ["tyre"]
    assert made["answer_choices"][correct] == (
        "The car in the image has the following visible parts in common with a bike: tyre."
    )
    question = parse_question({**record(made), "segmentations": {part: [{}] for part in graph["car"]}}, "file", 0)
    choice = training_conversation(question)
    (span,) = choice.spans
    assert choice.turns[0][1][span.char_start : span.char_end] == "tyre"
    assert choice.parts == ("tyre",)


def test_a_part_that_is_also_in_the_label_has_its_span_in_the_list():
    graph = {"wheel loader": ["bucket", "cab", "wheel"], "car": ["cab", "door", "wheel"]}
    generator = QuestionGenerator(graph, PartSampler(list(graph.values())), ObjectSampler({}, graph))
    made = generator.generate("wheel loader", graph["wheel loader"], "identification_with_label", np.random.default_rng(0))
    question = parse_question({**record(made), "segmentations": {part: [{}] for part in graph["wheel loader"]}}, "file", 0)
    choice = training_conversation(question)
    answer = choice.turns[0][1]
    assert [answer[span.char_start : span.char_end] for span in choice.spans] == ["bucket", "cab", "wheel"]
    assert choice.spans[2].char_start > answer.index(":")


def test_a_question_that_cannot_be_asked_has_a_reason(generator):
    def reason(label, visible, kind, using=generator):
        question, why = using.attempt(label, visible, kind, np.random.default_rng(0))
        assert question is None
        return why

    assert reason("bird", [], "identification") == "no visible part"
    assert reason("hour glass", ["base"], "positive") == NO_COMPARISON
    assert reason("airplane", ["engine"], "positive") == NO_COMPARISON
    graph = {"a": ["x", "y"], "b": ["x", "z"]}
    small = QuestionGenerator(graph, PartSampler([["x"]]), ObjectSampler({}, graph))
    assert reason("a", ["x"], "identification", small) == TOO_FEW_PARTS
    few = QuestionGenerator(GRAPH, PartSampler(INSTANCES), ObjectSampler({}, ["bird", "car"]))
    assert reason("bird", ["wing", "tail"], "part_to_whole", few) == TOO_FEW_OBJECTS
    question, why = generator.attempt("bird", ["wing", "tail"], "identification", np.random.default_rng(0))
    assert question
    assert why == ""


def test_correct_choice_stands_anywhere(generator):
    found, objects = collections.Counter(), collections.Counter()
    for seed in range(500):
        made = generator.generate("bird", ["wing", "tail", "leg"], "part_to_whole", np.random.default_rng(seed))
        found[made["answer_types"].index("correct")] += 1
        objects[made["object_answer_types"].index("correct")] += 1
    for counts in (found, objects):  # chi-square with 4 degrees of freedom, 0.1 percent point
        assert sum((counts[k] - 100) ** 2 / 100 for k in range(5)) < 18.5


def test_unknown_type_is_an_error(generator):
    with pytest.raises(ValueError, match="whole_to_hole"):
        generator.generate("bird", ["wing"], "whole_to_hole", np.random.default_rng(0))


def test_config_is_data():
    assert dataclasses.asdict(QuestionConfig())["max_mutations"] == 3


def test_same_questions_under_any_hash_seed():
    script = (
        "import json, numpy as np; from tests.test_questions import *;"
        "g = make_generator();"
        "print(json.dumps([g.generate('bird', {'wing', 'tail', 'leg'}, t, np.random.default_rng(s)) "
        "for t in QUESTION_TYPES for s in range(5)]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[1],
            check=True, capture_output=True, timeout=120,
        ).stdout
        for seed in ("0", "77")
    }  # fmt: skip
    assert len(texts) == 1
    assert len(json.loads(texts.pop())) == 50
