import copy
import json

import pytest
from fixtures_partonomy import question, write_entries

from data_pipelines.partonomy.records import conversations, read_questions, training_conversation
from plum_jax.errors import UserError

HW = (40, 60)


def read(tmp_path, *entries):
    write_entries(tmp_path, list(entries))
    return read_questions(tmp_path / "partonomy_qa_pairs_train.json")


def test_the_correct_choice_is_where_the_types_say(tmp_path):
    for place in range(5):
        (record,) = read(tmp_path, question("images/a.png", HW, correct=place))
        assert record.correct == place
        assert record.object_correct is None
        assert record.correct_parts == ("base", "lamp shade", "pole")
        row = training_conversation(record)
        assert row.turns == ((f"<image>\n{record.question}", record.answer_choices[place]),)
        assert [row.turns[0][1][s.char_start : s.char_end] for s in row.spans] == list(record.correct_parts)


def test_rows_of_a_one_turn_question(tmp_path):
    (record,) = read(tmp_path, question("images/a.png", HW, correct=3))
    rows = conversations(record)
    assert [(row.kind, row.index, row.correct) for row in rows] == [("part", i, i == 3) for i in range(5)]
    assert [row.parts for row in rows] == list(record.answer_parts)


def test_rows_of_part_to_whole(tmp_path):
    (record,) = read(tmp_path, question("images/a.png", HW, "part_to_whole", correct=2))
    rows = conversations(record)
    assert [(row.kind, row.index, row.correct) for row in rows[:5]] == [("part", i, i == 2) for i in range(5)]
    assert [(row.kind, row.index, row.correct) for row in rows[5:]] == [("object", i, i == 1) for i in range(5)]
    right = (f"<image>\n{record.question}", record.answer_choices[2])
    assert [row.turns for row in rows[5:]] == [(right, (record.object_question, a)) for a in record.object_answer_choices]
    assert all(span.turn == 0 for row in rows for span in row.spans)
    assert rows[7].parts == record.correct_parts
    assert training_conversation(record) == rows[6]


def test_rows_of_whole_to_part(tmp_path):
    (record,) = read(tmp_path, question("images/a.png", HW, "whole_to_part", correct=4))
    rows = conversations(record)
    assert [(row.kind, row.index, row.correct) for row in rows[:5]] == [("object", i, i == 1) for i in range(5)]
    assert [(row.kind, row.index, row.correct) for row in rows[5:]] == [("part", i, i == 4) for i in range(5)]
    right = (f"<image>\n{record.object_question}", "It is a desk lamp.")
    assert [row.turns for row in rows[5:]] == [(right, (record.question, answer)) for answer in record.answer_choices]
    assert all(row.spans == () for row in rows[:5])
    assert all(span.turn == 1 for row in rows[5:] for span in row.spans)
    assert training_conversation(record) == rows[9]


CHANGES = [
    ({"image_path": "/etc/a.png"}, "image_path"),
    ({"image_path": "images/../../a.png"}, "image_path"),
    ({"image_path": "C:\\a.png"}, "image_path"),
    ({"image_path": 3}, "image_path is 3; give a text"),
    ({"question": ""}, "question"),
    ({"question_type": "identify"}, "use one of difference"),
    ({"answer_choices": "It is"}, "answer_choices"),
    ({"answer_types": ["correct"] * 5}, "exactly one choice"),
    ({"answer_types": ["incorrect"] * 5}, "exactly one choice"),
    ({"answer_types": ["correct", "incorrect"]}, "give 5 values"),
    ({"answer_parts": [["base"]] * 4}, "give 5 values"),
    ({"answer_parts": ["base"] * 5}, "one list of part names"),
    ({"answer_parts": [["lid"], ["a"], ["b"], ["c"], ["d"]]}, "add a mask of the correct part 'lid'"),
    ({"answer_parts": [[], ["a"], ["b"], ["c"], ["d"]]}, "at least one part"),
    ({"segmentations": []}, "segmentations"),
    ({"segmentations": {"base": []}}, "add a mask of the correct part 'base'"),
    ({"object_question": None}, "object_question is null"),
    ({"object_answer_classes": ["mug", "chair", "car", "table", "bed"]}, "equal to image_label"),
    ({"object_answer_types": ["correct", "correct"]}, "object_answer_types"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_bad_entries(tmp_path, change, message):
    good = question("images/a.png", HW, "part_to_whole")
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, good, {**copy.deepcopy(good), **change})
    assert str(caught.value).startswith(f"{tmp_path / 'partonomy_qa_pairs_train.json'}: entry 1: ")


@pytest.mark.parametrize("token", ["</s>", "<image>"])
@pytest.mark.parametrize(
    "field", ["question", "answer_choices", "object_question", "object_answer_choices", "object_answer_classes"]
)
def test_reserved_tokens_are_refused(tmp_path, field, token):
    entry = question("images/a.png", HW, "part_to_whole")
    if isinstance(entry[field], list):
        entry[field][3] = f"a{token}b"
    else:
        entry[field] = f"a{token}b"
    with pytest.raises(UserError, match=f"train.json: entry 0: {field} is .*; remove the reserved {token}"):
        read(tmp_path, entry)


def test_deep_nesting(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(UserError, match="a.json: is nested too deeply"):
        read_questions(tmp_path / "a.json")


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="plum data make"):
        read_questions(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not readable as JSON"):
        read_questions(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    with pytest.raises(UserError, match="JSON array"):
        read_questions(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[3]", encoding="utf-8")
    with pytest.raises(UserError, match="JSON object"):
        read_questions(tmp_path / "a.json")


def test_highlight_box_of_the_object_meant(tmp_path):
    entry = question("images/a.png", HW)
    assert read(tmp_path, entry)[0].highlight_box is None
    assert read(tmp_path, {**entry, "highlight_box": [1, 2, 30, 40]})[0].highlight_box == (1, 2, 30, 40)
    for box in ([1, 2, 3], [1, 2, 1, 4], [1.0, 2, 3, 4], "x"):
        with pytest.raises(UserError, match="highlight_box is .*; give whole numbers"):
            read(tmp_path, {**entry, "highlight_box": box})
