"""Prediction files of other models: layouts, the forms of an entry, which question one is about, and hostile files."""

import json

import jsonschema
import numpy as np
import pytest

from data_pipelines.partonomy.records import read_questions
from plum_jax import coco
from plum_jax.errors import UserError
from plum_jax.evaluation import collect, prediction_file, schema
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, OWN, Answer, Prediction, Span
from plum_jax.evaluation.reading import read_predictions
from tests import eval_fixtures, score_fixtures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """-> (source, entries of the question file, questions)."""
    folder = tmp_path_factory.mktemp("data")
    entries = eval_fixtures.write_folder(folder)
    source = folder / "partonomy_qa_pairs_test.json"
    return source, entries, read_questions(source)


def read(path, data):
    return collect.collect([path], data[2], data[0]).predictions


def one(tmp_path, data, entry):
    """The Prediction of a file with this one entry."""
    return next(iter(read(score_fixtures.write(tmp_path / "p.json", [entry]), data).values()))


def refused(tmp_path, data, entry):
    """What is said about a file with this one entry."""
    with pytest.raises(UserError) as caught:
        one(tmp_path, data, entry)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'p.json'}: entry 0: $") and "\n" not in said
    return said.partition("entry 0: ")[2]


def test_three_layouts_hold_the_same_predictions(data, tmp_path):
    made = [score_fixtures.perfect(entry, i) for i, entry in enumerate(data[1])]
    files = [
        score_fixtures.write(tmp_path / "array.json", made),
        score_fixtures.write(tmp_path / "object.json", {"model": "other", "predictions": made, "x_note": 1}),
        score_fixtures.write(tmp_path / "lines.jsonl", made),
        score_fixtures.write(tmp_path / "lines.txt.jsonl", made).rename(tmp_path / "lines_by_content.json"),
    ]
    (tmp_path / "indented.json").write_text("\ufeff" + json.dumps({"predictions": made}, indent=1), encoding="utf-8")
    first, *others = [read(path, data) for path in [*files, tmp_path / "indented.json"]]
    assert len(first) == len(data[1]) and all(other == first for other in others)
    assert [where for where, _ in read_predictions(files[2]).entries][:2] == ["line 1", "line 2"]
    assert [where for where, _ in read_predictions(files[0]).entries][:2] == ["entry 0", "entry 1"]


def test_lines_of_plum_evaluate_come_back_unchanged(data, tmp_path):
    rle = coco.encode(score_fixtures.target(data[1][0], "wheel"))
    question = data[2][1]
    right = question.answer_choices[question.correct]
    start = right.index("wheel")
    tagged = Span("wheel", rle, (start, start + 5), "wheel", 0.25, 0.1 + 0.2, "low_confidence")
    answers = {
        GT_SPANS: Answer(right, (tagged, Span("door", rle, None, "door", 0.5, 0.5)), question.correct),
        GT_ANSWER: Answer(right, (tagged,), question.correct),
        OWN: Answer(right, (tagged,), question.correct, {"matched": 1, "predicted": 1, "target": 2}, ((5, 6), (1, 1), (0, 0))),
        GENERATED: Answer("No wheel.", (Span("wheel", rle, (3, 8)),)),
    }
    scores = {name: {"answer_mean": [0.1, 1e-17, 3.0, 4.0, 5.0]} for name in ("part", "object", "second_after_predicted")}
    made = [Prediction(1, question.image_path, "part_to_whole", scores, answers)]
    made.append(Prediction(0, data[2][0].image_path, data[2][0].question_type, {}, {}, {}, "image_unreadable"))
    prediction_file.append(tmp_path / "predictions.jsonl", made)
    assert list(read(tmp_path / "predictions.jsonl", data).values()) == made


def test_a_question_is_named_by_place_or_by_what_it_asks(data, tmp_path):
    entry = data[1][4]
    named = {key: entry[key] for key in ("image_path", "question_type", "question")}
    answer = {"answer": {"text": "Nothing."}}
    assert one(tmp_path, data, {**named, **answer}).index == 4
    assert one(tmp_path, data, {**named, **answer, "image_path": "C:\\data\\" + named["image_path"]}).index == 4
    assert one(tmp_path, data, {**named, **answer, "image_path": "1.png", "image_label": "cart"}).index == 4
    assert one(tmp_path, data, {**named, **answer, "question": entry["object_question"]}).index == 4
    assert one(tmp_path, data, {**named, **answer, "index": 4}).index == 4
    for change, said in (
        ({"image_path": "images/none.png"}, '$.image_path is "images/none.png", which is no image of the question file'),
        ({"image_path": "other/1.png"}, '$.image_path is "other/1.png"'),
        ({"question": "Why?"}, '$.question is "Why?", which is no part_to_whole question about images/1.png'),
        ({"image_label": "dog"}, '$.image_label is "dog"; give "cart"'),
        ({"index": 5}, '$.question_type is "part_to_whole", but question 5 has "whole_to_part"'),
        ({"index": 1}, '$.image_path is "images/1.png", but question 1 has "images/0.png"'),
        ({"index": 9}, "$.index is 9; the question file ends with question 8"),
        ({"question_type": "difference"}, "$.question is"),
    ):
        assert refused(tmp_path, data, {**named, **answer, **change}).startswith(said)


def test_equal_questions_about_two_objects_need_a_label(data, tmp_path):
    entries = json.loads(json.dumps(data[1][:1] * 2))
    entries[1]["image_label"] = "lamp"
    source = tmp_path / "questions.json"
    source.write_text(json.dumps(entries))
    two = source, entries, read_questions(source)
    named = {key: entries[0][key] for key in ("image_path", "question_type", "question")}
    assert "of the questions 0, 1; add image_label, or give index" in refused(
        tmp_path, two, {**named, "predicted": {"part": 0}}
    )
    assert one(tmp_path, two, {**named, "image_label": "lamp", "predicted": {"part": 0}}).index == 1


def test_scores_are_turned_so_that_lower_is_better(data, tmp_path):
    numbers = [1, 2.5, None, -3, 0]
    higher = one(tmp_path, data, {"index": 0, "better": "higher", "choice_scores": {"part": numbers}})
    assert higher.choice_scores["part"]["score"] == [-1, -2.5, None, 3, 0]
    lower = one(tmp_path, data, {"index": 0, "better": "lower", "choice_scores": {"part": {"nll": numbers}}})
    assert lower.choice_scores["part"]["nll"] == numbers
    path = score_fixtures.write(
        tmp_path / "head.json", {"better": "higher", "predictions": [{"index": 0, "choice_scores": {"part": [0, 1, 0, 0, 0]}}]}
    )
    assert read(path, data)[0].predicted == {"part": 1}
    assert "does not say which way is better" in refused(tmp_path, data, {"index": 0, "choice_scores": {"part": numbers}})
    two = {"index": 0, "better": "lower", "choice_scores": {"part": {"a": [1] * 5, "b": [2] * 5}}}
    assert "has the measures a, b; leave one" in refused(tmp_path, data, two)
    assert one(tmp_path, data, {**two, "predicted": {"part": 2}}).predicted == {"part": 2}
    assert "has 2 numbers for 5 choices" in refused(
        tmp_path, data, {"index": 0, "better": "lower", "choice_scores": {"part": [1, 2]}}
    )
    assert "does not ask that" in refused(tmp_path, data, {"index": 0, "predicted": {"object": 1}})
    assert "$.predicted.part is 5; give a whole number from 0 to 4" in refused(
        tmp_path, data, {"index": 0, "predicted": {"part": 5}}
    )


def test_the_mode_of_a_plain_answer_follows_from_what_it_is(data, tmp_path):
    question = data[2][0]
    right, wrong = question.correct, (question.correct + 1) % 5
    modes = lambda answer, **fields: one(tmp_path, data, {"index": 0, "answer": answer, **fields}).answers  # noqa: E731
    assert modes({"choice": wrong})[OWN] == Answer(question.answer_choices[wrong], (), wrong)
    assert modes({"text": f" {question.answer_choices[wrong]}\n"})[OWN].choice == wrong
    assert modes({"text": "A wheel."})[GENERATED] == Answer("A wheel.", ())
    assert modes({"text": "A wheel."}, predicted={"part": 2})[OWN] == Answer("A wheel.", ())
    assert modes({"mode": GT_SPANS})[GT_SPANS] == Answer(question.answer_choices[right], (), right)
    assert "is not the correct answer" in refused(tmp_path, data, {"index": 0, "answer": {"mode": GT_ANSWER, "choice": wrong}})
    assert "free text" in refused(tmp_path, data, {"index": 0, "answer": {"mode": GENERATED, "choice": 0}})
    assert "$.predicted.part is" in refused(
        tmp_path, data, {"index": 0, "predicted": {"part": right}, "answer": {"choice": wrong}}
    )
    assert "answer and answers" in refused(tmp_path, data, {"index": 0, "answer": {}, "answers": {}})


def test_masks_come_as_run_lengths_or_polygons(data, tmp_path):
    mask = np.zeros((20, 31), bool)
    mask[4:9, 3:13] = True
    flat = mask.T.ravel()
    runs = np.diff(np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1], [True]]))).tolist()
    forms = [
        coco.encode(mask),
        {"size": [20, 31], "counts": runs},
        {"size": [20, 31], "polygons": [[3, 4, 13, 4, 13, 9, 3, 9]]},
    ]
    spans = [{"phrase": "wheel", "mask": form} for form in (*forms, None)]
    found = one(tmp_path, data, {"index": 0, "answer": {"text": "wheels", "spans": spans}}).answers[GENERATED].spans
    for span in found[:3]:
        assert isinstance(span.mask["counts"], str) and span.status == "ok"
        np.testing.assert_array_equal(coco.decode(span.mask), mask)
    assert found[3].status == "empty_mask" and not coco.decode(found[3].mask).any()


BAD_MASKS = {
    "size": ({"size": [31, 20], "counts": "0"}, "the image is [20, 31]"),
    "huge size": ({"size": [10**6, 10**6], "counts": "0"}, "the image is [20, 31]"),
    "overflow": ({"size": [20, 31], "counts": "~" * 40}, "counts is"),
    "long run": ({"size": [20, 31], "counts": "oooooooO"}, "counts is"),
    "too many pixels": ({"size": [20, 31], "counts": [0, 621]}, "run lengths cover 621 pixels"),
    "too few pixels": ({"size": [20, 31], "counts": [619]}, "run lengths cover 619 pixels"),
    "huge runs": ({"size": [20, 31], "counts": [10**9] * 3}, "counts"),
    "not ascii": ({"size": [20, 31], "counts": "\u00e9\ud800"}, "counts is"),
    "text for a number": ({"size": [20, "31"], "counts": "0"}, '$.answer.spans[0].mask.size[1] is "31"'),
    "both": ({"size": [20, 31], "counts": "0", "polygons": []}, "size, and counts or polygons"),
    "odd ring": ({"size": [20, 31], "polygons": [[1, 2, 3, 4, 5, 6, 7]]}, "polygon is"),
    "a list": ([[1, 0]], "size, and counts or polygons"),
    "a number": (7, "size, and counts or polygons"),
}


@pytest.mark.parametrize("mask, said", BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks_are_named_with_their_place(mask, said, data, tmp_path):
    message = refused(tmp_path, data, {"index": 0, "answer": {"text": "", "spans": [{"phrase": "wheel", "mask": mask}]}})
    assert message.startswith("$.answer.spans[0].mask") and said in message


BAD_ENTRIES = {
    "null": (None, "$ is null; give an object"),
    "a number": (3, "$ is 3; give an object"),
    "empty": ({}, "$ has no field; give index, or image_path"),
    "nothing to score": ({"index": 0}, "give answer, answers, choice_scores"),
    "true": ({"index": True, "answer": {}}, "$.index is true; give a whole number"),
    "fraction": ({"index": 0.5, "answer": {}}, "$.index is 0.5; give a whole number"),
    "whole, but no whole number": ({"index": 0.0, "answer": {}}, "$.index is 0.0; give a whole number"),
    "whole, but no whole choice": ({"index": 0, "answer": {"choice": 1.0}}, "$.answer.choice is 1.0; give a whole number"),
    "negative": ({"index": -1, "answer": {}}, "$.index is -1; give a whole number"),
    "huge": ({"index": 10**40, "answer": {}}, "$.index is 1000"),
    "misspelt": ({"index": 0, "answr": {}}, "$ has the unknown field \"answr\"; did you mean 'answer'?"),
    "note": ({"index": 0, "answers": {"x_note": 1}}, '$.answers has the unknown field "x_note"; use gt_answer_gt_spans'),
    "huge raw": (
        {"index": 0, "answer": {"spans": [{"phrase": "a", "mask": None, "raw": 10**400}]}},
        "$.answer.spans[0].raw holds",
    ),
    "mode": ({"index": 0, "answers": {"own": {}}}, "$.answers has the unknown field"),
    "scores": ({"index": 0, "choice_scores": {"part": "high"}}, "$.choice_scores.part is"),
    "score": ({"index": 0, "choice_scores": {"part": [1, 2, 3, 4, "5"]}}, "$.choice_scores.part[4] is"),
    "huge score": (
        {"index": 0, "better": "lower", "choice_scores": {"part": [10**400, 1, 1, 1, 1]}},
        "$.choice_scores.part holds",
    ),
    "char": (
        {"index": 0, "answer": {"text": "a wheel", "spans": [{"phrase": "wheel", "mask": None, "char": [3, 7]}]}},
        "$.answer.spans[0].char is [3, 7]",
    ),
    "no phrase": ({"index": 0, "answer": {"spans": [{"mask": None}]}}, "$.answer.spans[0] has no 'phrase'; give the words"),
    "probability": (
        {"index": 0, "answer": {"spans": [{"phrase": "a", "mask": None, "score": 2}]}},
        "$.answer.spans[0].score is 2; give the IoU",
    ),
    "bio": ({"index": 0, "answer": {"bio_counts": [[1, 2], [1, 2]]}}, "$.answer.bio_counts is"),
}


@pytest.mark.parametrize("entry, said", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_bad_entries_are_named_with_their_place_and_the_fix(entry, said, data, tmp_path):
    assert refused(tmp_path, data, entry).startswith(said) or said in refused(tmp_path, data, entry)


BAD_FILES = {
    "empty.json": (b"", "is empty"),
    "blank.jsonl": (b" \n\n", "is empty"),
    "bom.json": (b"\xef\xbb\xbf", "is empty"),
    "none.json": (b"[]", "holds no prediction"),
    "none_inside.json": (b'{"predictions": []}', "holds no prediction"),
    "other.json": (b'{\n"images": []}', "without predictions"),
    "utf16.json": ('[{"index": 0}]'.encode("utf-16"), "UTF-8"),
    "latin.jsonl": ('{"image_path": "\u00e9"}\n'.encode("latin-1"), "line 1: is not UTF-8"),
    "binary.json": (bytes(range(256)), "UTF-8"),
    "nan.json": (
        b'[{"index": 0, "better": "lower", "choice_scores": {"part": [NaN, 1, 1, 1, 1]}}]',
        "NaN is not a JSON number",
    ),
    "inf.jsonl": (b'{"index": 0, "predicted": {"part": -Infinity}}', "line 1: not readable as JSON (-Infinity"),
    "overflow.jsonl": (b'{"index": 0, "choice_scores": {"part": [1e999]}}', "1e999 is not a JSON number"),
    "digits.jsonl": (b'{"index": ' + b"9" * 5000 + b"}", "line 1: not readable as JSON"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "deep.jsonl": (b"[" * 100_000, "line 1: is nested too deeply"),
    "cut.json": (b'[{"index": 0', "not readable as JSON"),
    "cut.jsonl": (b'{"index": 0, "skipped": "x"}\n{"index": 1', "line 2: not readable as JSON"),
    "behind.json": (b'[{"index": 0, "skipped": "x"}] tail', "behind the end"),
    "lines_in_json.jsonl": (b'[{"index": 0, "skipped": "x"}]', "line 1: $ is [{"),
    "head.json": (b'{"better": "up", "predictions": [{"index": 0, "skipped": "x"}]}', 'better is "up"'),
    "head_field.json": (b'{"beter": 1, "predictions": [{"index": 0, "skipped": "x"}]}', 'unknown field "beter"'),
    "nested_list.json": (b"[[]]", "entry 0: $ is []"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_hostile_files_are_refused_in_one_sentence(name, data, tmp_path):
    content, said = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, data)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name)) and said in message and "\n" not in message and len(message) < 600


def test_what_is_no_file_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.json", data)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path, data)


def test_a_question_has_one_prediction(data, tmp_path):
    made = [score_fixtures.perfect(data[1][0], 0), score_fixtures.perfect(data[1][1], 1)]
    path = score_fixtures.write(tmp_path / "p.json", [*made, made[0]])
    with pytest.raises(UserError, match=r"entry 2: is about question 0, as entry 0 of .*p\.json is"):
        read(path, data)
    other = score_fixtures.write(tmp_path / "q.jsonl", made[:1])
    with pytest.raises(UserError, match=r"q\.jsonl: line 1: is about question 0, as entry 0 of .*r\.json is"):
        collect.collect([score_fixtures.write(tmp_path / "r.json", made), other], data[2], data[0])


NOT_IN_SCHEMA = (  # for JSON Schema 0.0 and 1.0 are integers
    "char", "huge score", "huge raw", "whole, but no whole number", "whole, but no whole choice",
)  # fmt: skip


def test_the_published_schema_agrees_with_the_reader(data, tmp_path):
    """Whole files, checked with nothing of ours but the schema."""
    whole = json.loads(schema.SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(whole)
    validator = jsonschema.Draft202012Validator(whole)
    made = [score_fixtures.perfect(entry, i) for i, entry in enumerate(data[1])]
    for good in (made, {"predictions": made, "model": "other"}, made[0]):
        assert validator.is_valid(json.loads(json.dumps(good)))
    for entry, _ in [v for k, v in BAD_ENTRIES.items() if k not in NOT_IN_SCHEMA]:
        assert not validator.is_valid([entry]) and not validator.is_valid({"predictions": [entry]})
