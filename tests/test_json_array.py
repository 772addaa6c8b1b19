import json

import pytest

from data_pipelines import json_array
from data_pipelines.json_array import JsonArray, scan
from plum_jax.errors import UserError

VALUES = [{"a": "x" * 30}, {"b": "grün, 漢字 and 🦙", "c": [1, {"d": None}]}, 12345, "text", [], {"e": "]},[{"}, 1.5, True]


def write(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 22])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("head", ["", "\ufeff", " \n"])
def test_every_element_is_found_again_whatever_the_block_size(tmp_path, monkeypatch, block, indent, head):
    monkeypatch.setattr(json_array, "BLOCK", block)
    path = write(tmp_path, head + json.dumps(VALUES, indent=indent, ensure_ascii=False) + "\n")
    found = list(scan(path))
    assert [value for _, _, value in found] == VALUES
    array = JsonArray(path, [(start, stop) for start, stop, _ in found])
    assert [array[i] for i in range(len(array))] == VALUES
    assert [(start, stop) for start, stop, _ in found] == [(start, stop) for start, stop in array.ranges.tolist()]


def test_any_choice_of_elements_can_be_kept(tmp_path):
    path = write(tmp_path, json.dumps(VALUES))
    array = JsonArray(path, [(start, stop) for start, stop, value in scan(path) if isinstance(value, dict)])
    assert [array[i] for i in range(len(array))] == [value for value in VALUES if isinstance(value, dict)]


def test_an_empty_array(tmp_path):
    assert list(scan(write(tmp_path, " [ ] "))) == []
    assert len(JsonArray("nowhere", [])) == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "byte 0: does not start with \\["),
        ('{"a": 1}', "byte 0: does not start with \\["),
        ("[1 2]", "byte 3: the array goes on with neither"),
        ("[1, 2", "byte 5: the array goes on with neither"),
        ('[{"é": 1}, {"b": }]', "byte 12: not readable as JSON"),
        ("[1,]", "byte 3: not readable as JSON"),
        ("[1] x", "byte 4: something stands behind"),
        (b'["\xff"]', "is not UTF-8"),
        (b'["a\xc3', "is not UTF-8"),
        ("[" + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_array_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        list(scan(write(tmp_path, text)))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="none.json: no such file; put the questions there"):
        list(scan(tmp_path / "none.json", "the questions"))
    with pytest.raises(UserError, match="cannot be read"):
        list(scan(tmp_path))


def test_a_file_that_changed_is_noticed(tmp_path):
    path = write(tmp_path, json.dumps(VALUES))
    array = JsonArray(path, [(start, stop) for start, stop, _ in scan(path)])
    path.write_text("[]")
    with pytest.raises(UserError, match="changed or vanished"):
        array[0]
