"""What each benchmark asks about small folders in the real layouts: everything once, in order, with the right targets."""

import collections
import json

import benchmark_fixtures as fixtures
import eval_fixtures
import numpy as np
import pytest
from fixtures_folders import blocks, box_mask

from plum_jax import coco
from plum_jax.errors import UserError
from plum_jax.evaluation import hallucination
from plum_jax.evaluation.asked import Asked, read_questions, write_questions
from plum_jax.evaluation.vqa_files import YES_NO, read_answers, read_official


def decoded(rle):
    return None if rle is None else coco.decode(rle)


def test_refer_asks_every_sentence_in_order(tmp_path):
    data, questions = fixtures.opened("refer", "--data", fixtures.refer(tmp_path), "--dataset", "grefcoco")
    assert [q.name for q in questions] == ["left thing", "it", "it", "both", "a dog", "it"]
    assert [q.target is None for q in questions] == [False] * 4 + [True, False]
    left, right = (box_mask(place).astype(bool) for place in (fixtures.LEFT, fixtures.RIGHT))
    for question, wanted in zip(questions, (left, left, right, left | right, None, left), strict=True):
        assert np.array_equal(decoded(question.target), wanted) if wanted is not None else question.target is None
        assert question.given == question.name == question.given[slice(*question.span)]
        assert question.prompt == f"Please segment this in the image: {question.name}."
        assert (tmp_path / question.image_path).is_file()
    assert len({q.id for q in questions}) == 6
    assert (data.dataset, data.split, +data.skipped) == ("grefcoco", "val", collections.Counter())
    assert [path.name for path in data.inputs] == ["instances.json", "grefs(unc).json"]
    _, again = fixtures.opened("refer", "--data", tmp_path, "--dataset", "grefcoco")
    assert again == questions
    _, first = fixtures.opened("refer", "--data", tmp_path, "--dataset", "grefcoco", "--max-images", 1)
    assert first == questions[:4]


@pytest.mark.parametrize(
    "dataset, split", [("refcoco", "testA"), ("refcoco+", "testB"), ("refcocog", "test"), ("refclef", "testC")]
)
def test_refer_knows_the_family(tmp_path, dataset, split):
    fixtures.refer(tmp_path, dataset, split=split)
    _, questions = fixtures.opened("refer", "--data", tmp_path, "--dataset", dataset, "--split", split)
    assert [q.name for q in questions] == ["left thing", "it", "it", "it"] and all(q.target for q in questions)


def test_refer_can_be_asked_otherwise(tmp_path):
    fixtures.refer(tmp_path)
    _, questions = fixtures.opened("refer", "--data", tmp_path, "--dataset", "grefcoco", "--question", "What is {name} here?")
    assert questions[0].prompt == "What is left thing here?"
    for wrong in ("no slot", "{name} {name}", "<image> {name}"):
        with pytest.raises(UserError, match="--question"):
            fixtures.opened("refer", "--data", tmp_path, "--dataset", "grefcoco", "--question", wrong)


@pytest.mark.parametrize("split", ["val", "test"])
def test_reason_asks_every_query_by_length(tmp_path, split, capsys):
    data, questions = fixtures.opened("reason", "--data", fixtures.reason(tmp_path, split), "--split", split)
    assert [(q.name, q.groups) for q in questions] == [
        ("what to sit on", ("short", "first_query")), ("the seat", ("short",)),
        ("Which thing could carry water?", ("long", "first_query")),
    ]  # fmt: skip
    assert questions[0].given == "This region shows what to sit on." and questions[0].span == (0, len(questions[0].given))
    assert "what to sit on" in questions[0].prompt and questions[2].prompt.startswith("Which thing could carry water? ")
    target, ignore = decoded(questions[0].target), decoded(questions[0].ignore)
    assert target.any() and ignore.any() and not (target & ignore).any() and questions[2].ignore is None
    assert "3 queries have no response" in capsys.readouterr().out


def test_reason_takes_responses(tmp_path):
    fixtures.reason(tmp_path)
    (tmp_path / "said.json").write_text(json.dumps({"a": ["One sits here.", "Here."], "b": ["This can."]}))
    argv = ("--data", tmp_path, "--split", "test", "--responses", tmp_path / "said.json")
    assert [q.given for q in fixtures.opened("reason", *argv)[1]] == ["One sits here.", "Here.", "This can."]


def test_semantic_leaves_out_what_nobody_labelled(tmp_path):
    _, questions = fixtures.opened("semantic", "--data", fixtures.semantic(tmp_path), "--dataset", "ade20k")
    assert [q.name for q in questions] == ["flag", "sky", "wall", "wall"]
    np.testing.assert_array_equal(decoded(questions[1].target), blocks(0, 0, 1, 0) > 0)
    np.testing.assert_array_equal(decoded(questions[1].ignore), blocks(1, 0, 0, 0) > 0)  # value 0 of ADE20K
    assert questions[0].given == "The flag." and questions[0].given[slice(*questions[0].span)] == "flag"


def test_semantic_ignores_classes_that_are_not_asked_for(tmp_path):
    _, questions = fixtures.opened("semantic", "--data", fixtures.semantic(tmp_path, "cocostuff"), "--dataset", "cocostuff")
    assert [q.name for q in questions] == ["person", "wood"]
    np.testing.assert_array_equal(decoded(questions[0].ignore), blocks(0, 1, 0, 1) > 0)  # building-other and 255
    fixtures.semantic(tmp_path, "mapillary")
    for void, wanted, ignored in (
        ((), ["bird", "car"], (0, 0, 1, 1)),
        (("--ask-void",), ["bird", "car", "void"], (0, 0, 0, 1)),
    ):
        _, questions = fixtures.opened("semantic", "--data", tmp_path, "--dataset", "mapillary", *void)
        assert [q.name for q in questions] == wanted
        np.testing.assert_array_equal(decoded(questions[0].ignore), blocks(*ignored) > 0)


def test_semantic_counts_a_bad_label_map(tmp_path):
    fixtures.semantic(tmp_path)
    (tmp_path / "ade20k/annotations/validation/ADE_val_0.png").write_bytes(b"no image")
    data, questions = fixtures.opened("semantic", "--data", tmp_path, "--dataset", "ade20k")
    assert len(questions) == 1 and data.skipped == {"label map not readable or without a class": 1}


def test_textvqa_gqa_and_pope_are_read_as_released(tmp_path):
    data, questions = fixtures.opened("vqa", "--data", fixtures.textvqa(tmp_path), "--dataset", "textvqa")
    assert [q.id for q in questions] == ["textvqa/34602", "textvqa/34603"] and len(questions[0].references) == 10
    assert questions[0].prompt == "what brand is it? Answer the question using a single word or phrase."
    assert data.skipped == {"image file missing": 1} and (tmp_path / questions[0].image_path).is_file()
    _, questions = fixtures.opened("vqa", "--data", fixtures.gqa(tmp_path), "--dataset", "gqa")
    assert [(q.id, q.references, q.groups) for q in questions] == [
        ("gqa/201", ("no", "No, it is not."), ("verify",)), ("gqa/202", ("cat", "It is a cat."), ("query",)),
    ]  # fmt: skip
    data, questions = fixtures.opened("pope", "--data", fixtures.pope(tmp_path))
    assert data.split == "random,popular,adversarial" and len(questions) == 6 and len({q.id for q in questions}) == 6
    assert questions[3].groups == ("popular",) and questions[3].references == ("no",)
    assert questions[0].prompt == "Is there a cat in the image?" + YES_NO
    _, questions = fixtures.opened("pope", "--data", tmp_path, "--split", "popular")
    assert {q.groups for q in questions} == {("popular",)}


def test_faults_of_official_files_are_one_sentence(tmp_path):
    fixtures.textvqa(tmp_path)
    path = tmp_path / "textvqa/TextVQA_0.5.1_val.json"
    content = json.loads(path.read_text())
    del content["data"][1]["answers"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"TextVQA_0.5.1_val.json: entry 1: has no answers; take the split val"):
        fixtures.opened("vqa", "--data", tmp_path, "--dataset", "textvqa")
    with pytest.raises(UserError, match="testdev_balanced_questions.json: no such file; .*docs/benchmarks.md"):
        fixtures.opened("vqa", "--data", tmp_path, "--dataset", "gqa")
    with pytest.raises(UserError, match="--split easy: POPE has random, popular, adversarial"):
        fixtures.opened("pope", "--data", tmp_path, "--split", "easy")
    fixtures.pope(tmp_path)
    path = tmp_path / "pope/coco/coco_pope_random.json"
    path.write_text(path.read_text().replace('"yes"', '"maybe"'))
    with pytest.raises(UserError, match="line 1: label is 'maybe'"):
        fixtures.opened("pope", "--data", tmp_path)


def test_official_answer_files(tmp_path):
    _, questions = read_official(fixtures.gqa(tmp_path) / "gqa/questions/testdev_balanced_questions.json")
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([{"questionId": "202", "prediction": "cat"}, {"questionId": "201", "prediction": "yes"}]))
    assert read_answers(answers, questions) == {0: "yes", 1: "cat"}
    _, questions = read_official(fixtures.pope(tmp_path) / "pope/coco/coco_pope_random.json")
    answers.write_text('{"question": "Is there a cat?", "answer": "Yes"}\n{"question": "a dog?", "answer": "No"}\n')
    assert read_answers(answers, questions) == {0: "Yes", 1: "No"}
    answers.write_text(json.dumps([{"question_id": 7, "answer": "Yes"}]))
    with pytest.raises(UserError, match="entry 0: question 7 is not in the reference"):
        read_answers(answers, questions)
    answers.write_text(json.dumps([{"question_id": 1, "answer": "Yes"}] * 2))
    with pytest.raises(UserError, match="question 1 is answered twice"):
        read_answers(answers, questions)


def test_parts_that_are_there_and_that_are_not(tmp_path):
    entries = eval_fixtures.write_folder(tmp_path)
    _, questions = fixtures.opened("hallucination", "--data", tmp_path, "--per-image", 2)
    there = {entry["image_path"]: set(entry["segmentations"]) for entry in entries}
    for question in questions:
        is_there = question.name in there[question.image_path]
        if question.kind == "words":
            assert question.references == (("yes",) if is_there else ("no",)) and question.prompt.endswith(YES_NO)
        else:
            assert (question.target is not None) == is_there and question.given == f"The {question.name}."
        assert question.groups == ("random", "popular", "adversarial") or not is_there
    assert {q.id.rpartition("#")[2] for q in questions} == {"visible", "mask"}
    assert len({q.id for q in questions}) == len(questions)
    assert fixtures.opened("hallucination", "--data", tmp_path, "--per-image", 2)[1] == questions
    with pytest.raises(UserError, match="--per-image 0"):
        fixtures.opened("hallucination", "--data", tmp_path, "--per-image", 0)


def test_absent_parts_are_drawn_by_frequency_and_company():
    visible = {
        "1": {"wheel": [], "door": []}, "2": {"wheel": [], "door": []}, "3": {"wheel": [], "lamp": []}, "4": {"leg": []},
        "5": {"leg": []}, "6": {"leg": []}, "7": {"leg": []}, "8": {"wheel": []},
    }  # fmt: skip
    absent = hallucination.Absent(visible)
    drawn = absent.draw({"wheel": []}, 1, np.random.default_rng(0))
    kinds = {kind: part for part, found in drawn.items() for kind in found}
    assert kinds["popular"] == "leg"  # four images, more than any other but wheel
    assert kinds["adversarial"] == "door"  # twice beside a wheel
    assert set(drawn) <= {"door", "lamp", "leg"}
    assert absent.draw({"wheel": [], "door": [], "lamp": [], "leg": []}, 3, np.random.default_rng(0)) == {}


def test_question_files_round_trip_and_report_faults(tmp_path):
    questions = [
        Asked("a", "x.jpg", "Où?", name="é", given="là.", span=(0, 2), target={"size": [1, 2], "counts": "11"}, groups=("g",)),
        Asked("b", "x.jpg", "Is it?", kind="words", references=("yes",)),
    ]
    path = tmp_path / "questions.jsonl"
    assert write_questions(path, questions) == 2
    assert list(read_questions(path)) == questions
    for line, message in (
        ("{", "line 1: is not JSON"), ('{"id": "a"}', "line 1: is not a question"),
        ('{"id": "a", "image_path": "x", "prompt": "p", "kind": "box"}', "kind is 'box'; use mask or words"),
        ('{"id": "a", "image_path": "x", "prompt": "p", "target": 3}', "target is not a mask"),
        ('{"id": "a", "image_path": "x", "prompt": "p", "groups": "g"}', "groups is 'g'; give a list"),
    ):  # fmt: skip
        path.write_text(line)
        with pytest.raises(UserError, match=message):
            list(read_questions(path))
    with pytest.raises(UserError, match="no such file; plum evaluate writes it"):
        list(read_questions(tmp_path / "none.jsonl"))
