"""Running questions: what each mode gives, the second of two questions, sharing of masks, independence of how it is run."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines.partonomy.records import read_questions
from plum_jax import coco
from plum_jax.evaluation import prediction_file
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, MODES, OWN
from plum_jax.evaluation.rows import SECOND
from plum_jax.evaluation.runner import MEASURES, Runner, Sizes
from plum_jax.inference import Model
from tests import eval_fixtures

SIZES = ((20, 31), (24, 16), (33, 27), (18, 18), (40, 22), (16, 30), (25, 25), (31, 20), (22, 40), (19, 33))
SCRIPT = """
import sys
from pathlib import Path
from tests import eval_fixtures
from tests.test_runner import every_prediction
from plum_jax.evaluation import prediction_file
prediction_file.append(Path(sys.argv[2]), every_prediction(Path(sys.argv[1])).values())
"""


def every_prediction(folder, modes=MODES, model=None, questions=None, **options):
    """{index: Prediction} of the folder's questions."""
    source = folder / "partonomy_qa_pairs_test.json"
    questions = dict(enumerate(read_questions(source))) if questions is None else questions
    runner = Runner(model or Model(eval_fixtures.loaded()), questions, source, modes=modes, **options)
    return {p.index: p for image in runner.run(folder) for p in image}


@pytest.fixture(scope="module")
def model():
    return Model(eval_fixtures.loaded())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    eval_fixtures.write_folder(folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def base(folder, model):
    return every_prediction(folder, model=model)


def test_every_mode_has_the_answer_it_promises(base, folder):
    for i, question in enumerate(read_questions(folder / "partonomy_qa_pairs_test.json")):
        answers = base[i].answers
        assert set(answers) == set(MODES)
        correct = question.answer_choices[question.correct]
        assert answers[GT_SPANS].text == answers[GT_ANSWER].text == correct
        assert [span.part for span in answers[GT_SPANS].spans] == list(question.correct_parts)
        assert answers[OWN].text == question.answer_choices[answers[OWN].choice]
        assert answers[GENERATED].choice is None
        for mode in (GT_ANSWER, OWN):
            assert answers[mode].span_counts["predicted"] >= len(answers[mode].spans)
        if answers[OWN].choice == question.correct and question.question_type != "whole_to_part":
            assert answers[OWN] == answers[GT_ANSWER]
    assert any(len(p.answers[OWN].spans) for p in base.values()) and any(len(p.answers[GENERATED].spans) for p in base.values())


def test_only_what_is_asked_for_is_run(folder, model, base):
    few = {i: q for i, q in enumerate(read_questions(folder / "partonomy_qa_pairs_test.json")) if i < 3}
    only = every_prediction(folder, [GENERATED], model, few)
    assert all(set(p.answers) == {GENERATED} and p.choice_scores == {} for p in only.values())
    assert [only[i].answers[GENERATED].text for i in few] == [base[i].answers[GENERATED].text for i in few]
    middle = every_prediction(folder, [GT_ANSWER], model, few)
    assert all(set(p.answers) == {GT_ANSWER} and p.choice_scores for p in middle.values())


def test_free_generation_is_that_of_the_model(base, folder, model):
    questions = read_questions(folder / "partonomy_qa_pairs_test.json")
    for i in (0, 1, 7, 20):
        alone, found = model(folder / questions[i].image_path, questions[i].question), base[i].answers[GENERATED]
        assert alone.text == found.text and [s.char_span for s in alone.spans] == [s.char for s in found.spans]
        for span, other in zip(alone.spans, found.spans, strict=True):
            np.testing.assert_array_equal(span.mask, coco.decode(other.mask))
            assert span.score == pytest.approx(other.score, abs=1e-5)


def test_the_second_question_follows_the_predicted_first_answer(base, folder, model):
    """Where the model's first answer is declared correct, the second is scored after the same words."""
    questions, declared = read_questions(folder / "partonomy_qa_pairs_test.json"), {}
    for i, question in enumerate(questions):
        if question.question_type == "identification_with_label":
            assert SECOND not in base[i].choice_scores
            continue
        first = "object" if question.question_type == "whole_to_part" else "part"
        field = "object_answer_types" if first == "object" else "answer_types"
        chosen = int(np.argmin(base[i].choice_scores[first]["answer_mean"]))
        types = tuple("correct" if c == chosen else "incorrect" for c in range(5))
        declared[i] = dataclasses.replace(question, **{field: types})
    found, changed = every_prediction(folder, [GT_SPANS, OWN], model, declared), 0
    for i, question in declared.items():
        second = "part" if question.question_type == "whole_to_part" else "object"
        for name in MEASURES:
            np.testing.assert_allclose(base[i].choice_scores[SECOND][name], found[i].choice_scores[second][name], atol=1e-5)
            assert found[i].choice_scores[SECOND] == found[i].choice_scores[second]
        changed += base[i].choice_scores[SECOND] != base[i].choice_scores[second]
        same(base[i].answers[OWN], found[i].answers[OWN])
        if second == "part":
            assert base[i].answers[OWN].choice == int(np.argmin(base[i].choice_scores[SECOND]["answer_mean"]))
    assert changed > 5


def test_masks_of_equal_spans_are_decoded_once(folder, model, monkeypatch):
    """When the model tags exactly the constructed spans and chooses the correct answer, three modes share one decoding."""
    from plum_jax.evaluation import answers, runner

    tagged, count = answers.tagged, []
    decode = runner.Programs.decode

    def perfect(row, readout, shift, scope):
        found = tagged(row, readout, shift, scope)
        return dataclasses.replace(answers.constructed(row, readout, shift), counts=found.counts, bio=found.bio)

    def counted(self, embeddings, image, embeds, valid):
        count.append(int(valid.any(1).sum()))
        return decode(self, embeddings, image, embeds, valid)

    monkeypatch.setattr(answers, "tagged", perfect)
    monkeypatch.setattr(runner.Programs, "decode", counted)
    monkeypatch.setattr(runner, "choose", lambda scores, tie, correct: correct)
    found = every_prediction(folder, [GT_SPANS, GT_ANSWER, OWN], model)
    assert sum(count) == len(found) == 30
    assert all(p.answers[GT_SPANS].spans == p.answers[OWN].spans for p in found.values())


def same(a, b):
    """Asserts that two answers are the same up to rounding."""
    assert (a.text, a.choice, a.span_counts, a.bio_counts) == (b.text, b.choice, b.span_counts, b.bio_counts)
    for one, other in zip(a.spans, b.spans, strict=True):
        assert (one.phrase, one.char, one.part, one.status, one.mask) == (
            other.phrase, other.char, other.part, other.status, other.mask,
        )  # fmt: skip
        assert one.score == pytest.approx(other.score, abs=1e-5) and one.raw == pytest.approx(other.raw, abs=1e-5)


def same_predictions(found, wanted):
    assert set(found) == set(wanted)
    for i, prediction in wanted.items():
        assert set(found[i].choice_scores) == set(prediction.choice_scores)
        for kind, scores in prediction.choice_scores.items():
            for name, values in scores.items():
                np.testing.assert_allclose(found[i].choice_scores[kind][name], values, rtol=1e-5, atol=1e-5)
        for mode, answer in prediction.answers.items():
            same(found[i].answers[mode], answer)


def test_the_batch_does_not_matter(base, folder, model):
    few = dict(list(enumerate(read_questions(folder / "partonomy_qa_pairs_test.json")))[:12])
    same_predictions(every_prediction(folder, MODES, model, few, sizes=Sizes(1, 1, 1)), {i: base[i] for i in few})


def test_the_order_of_the_questions_does_not_matter(base, folder, model):
    questions = list(enumerate(read_questions(folder / "partonomy_qa_pairs_test.json")))
    random.Random(1).shuffle(questions)
    same_predictions(every_prediction(folder, MODES, model, dict(questions)), base)


def test_eight_devices_share_the_images(base, folder, model):
    assert len(jax.devices()) == 8
    same_predictions(every_prediction(folder, MODES, model, devices=jax.devices()), base)


def test_a_process_with_one_device_says_the_same(base, folder, tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", SCRIPT, folder, tmp_path / "p.jsonl"], env={**os.environ, **flags}, check=True)
    same_predictions({p.index: p for p in prediction_file.read(tmp_path / "p.jsonl")}, base)
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["image_path"] == "images/0.png"
