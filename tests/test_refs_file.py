import builtins
import json
import os
import pickle

import pytest
from fixtures_folders import write_json, write_pickle

from data_pipelines.refs_file import Ref, read_refs
from plum_jax.errors import UserError

ENTRY = {
    "ref_id": 7,
    "ann_id": 11,
    "image_id": 5,
    "category_id": 1,
    "split": "train",
    "file_name": "COCO_train2014_000000000005_0.jpg",
    "sent_ids": [0, 1],
    "sentences": [
        {"sent_id": 0, "sent": "the left one", "raw": "The left one.", "tokens": ["the", "left", "one"]},
        {"sent_id": 1, "sent": "café", "raw": "café", "tokens": ["café"]},
    ],
}
REF = Ref(5, "train", (11,), ("the left one", "café"))


class Attack:
    """A pickle of this calls `function(*arguments)` when an ordinary unpickler reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(5))
def test_a_pickle_is_read_once_and_kept_as_json(tmp_path, protocol):
    source = tmp_path / "refs(unc).p"
    write_pickle(source, [ENTRY, {**ENTRY, "ann_id": [11, 12]}, {**ENTRY, "ann_id": [-1]}], protocol)
    refs = read_refs(tmp_path, "refs(unc)", "")
    assert refs == [REF, Ref(5, "train", (11, 12), REF.sentences), Ref(5, "train", (), REF.sentences)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refs(unc).json", "refs(unc).p"]
    source.write_bytes(b"never read again")
    assert read_refs(tmp_path, "refs(unc)", "") == refs
    source.unlink()
    assert read_refs(tmp_path, "refs(unc)", "") == refs


def test_a_pickle_of_python_2(tmp_path):
    """Its strings are bytes (SHORT_BINSTRING), its protocol is 2; written here by hand."""

    def text(word):
        return b"U" + bytes([len(word)]) + word

    sentence = b"}(" + text(b"sent") + text("caf\xe9 \xff".encode("latin-1")) + b"u"
    entry = b"".join([text(b"image_id"), b"K\x05", text(b"split"), text(b"val"), text(b"ann_id"), b"K\x0b"])
    (tmp_path / "refs(umd).p").write_bytes(b"\x80\x02](}(" + entry + text(b"sentences") + b"](" + sentence + b"eue.")
    assert read_refs(tmp_path, "refs(umd)", "") == [Ref(5, "val", (11,), ("caf\ufffd \ufffd",))]


def test_json_is_preferred(tmp_path):
    write_pickle(tmp_path / "grefs(unc).p", [ENTRY])
    write_json(tmp_path / "grefs(unc).json", [{**ENTRY, "split": "testA"}])
    assert [ref.split for ref in read_refs(tmp_path, "grefs(unc)", "")] == ["testA"]


def test_a_folder_that_cannot_be_written_to_uses_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "read_only"
    write_pickle(folder / "refs(unc).p", [ENTRY])
    replace = os.replace

    def refuse(partial, path):
        if path.parent == folder:
            raise PermissionError(13, "no")
        replace(partial, path)

    monkeypatch.setattr(os, "replace", refuse)
    assert read_refs(folder, "refs(unc)", "") == [REF]
    assert [path.name for path in folder.iterdir()] == ["refs(unc).p"]  # nothing half written
    kept = list((tmp_path / "cache/plum_jax/refs").iterdir())
    assert len(kept) == 1
    opened = []
    monkeypatch.setattr(pickle, "Unpickler", lambda *a, **k: opened.append(a))
    assert read_refs(folder, "refs(unc)", "") == [REF]
    assert not opened
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pickle(folder / "refs(unc).p", [ENTRY, ENTRY])  # another pickle is another entry of the cache
    assert len(read_refs(folder, "refs(unc)", "")) == 2


def test_nowhere_to_write_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(30, "read-only")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pickle(tmp_path / "refs(unc).p", [ENTRY])
    assert read_refs(tmp_path, "refs(unc)", "") == [REF]
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (os.mkdir, ("{}",), "posix.mkdir"),
        (builtins.eval, ("open({!r}, 'w')",), "eval"),
    ],
)
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, protocol, function, arguments, name):
    mark = tmp_path / "ran"
    content = [{**ENTRY, "sentences": Attack(function, *(argument.format(str(mark)) for argument in arguments))}]
    pickle.loads(pickle.dumps(content, protocol=protocol))
    assert mark.exists()  # the attack is a real one
    mark.rmdir() if mark.is_dir() else mark.unlink()
    write_pickle(tmp_path / "refs(unc).p", content, protocol)
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p: its pickle calls .*{name}.*nothing was run"):
        read_refs(tmp_path, "refs(unc)", "")
    assert not mark.exists()
    assert not (tmp_path / "refs(unc).json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02]q",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"cos\nsystem\n.",
        b"(ios\nsystem\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"Pid\n.",  # a persistent id
        b"}}b.",  # BUILD on a dictionary
        b"]K\x01R.",  # REDUCE without a function
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_other_pickles_that_are_refused(tmp_path, content):
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: (its pickle calls|is not a readable pickle|holds a)"):
        read_refs(tmp_path, "refs(unc)", "")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("words", "is not a dictionary"),
        ({**ENTRY, "image_id": None}, "has no image_id"),
        ({**ENTRY, "image_id": 10**5000}, "has no image_id"),
        ({**ENTRY, "split": 3}, "has no split"),
        ({**ENTRY, "ann_id": None}, "has an ann_id"),
        ({**ENTRY, "ann_id": [11, -1]}, "has an ann_id"),
        ({**ENTRY, "ann_id": [11, [12]]}, "has an ann_id"),
        ({**ENTRY, "sentences": "the left one"}, "has no list of sentences"),
        ({**ENTRY, "sentences": [{"raw": "x"}]}, "has a sentence without sent"),
        ({**ENTRY, "sentences": ["x"]}, "has a sentence without sent"),
    ],
)
def test_malformed_entries_are_named(tmp_path, entry, match):
    write_pickle(tmp_path / "refs(unc).p", [ENTRY, entry])
    with pytest.raises(UserError, match=rf"entry 1: {match}"):
        read_refs(tmp_path, "refs(unc)", "")


def test_a_small_pickle_that_means_a_huge_text_is_refused_at_once(tmp_path):
    bomb = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    write_pickle(tmp_path / "refs(unc).p", [{**ENTRY, "image_id": bomb, "tokens": bomb}])
    with pytest.raises(UserError, match="has no image_id"):
        read_refs(tmp_path, "refs(unc)", "")
    write_pickle(tmp_path / "refs(umd).p", [{**ENTRY, "tokens": bomb}])  # nobody reads these
    assert read_refs(tmp_path, "refs(umd)", "") == [REF]


def test_missing_and_wrong_files(tmp_path):
    with pytest.raises(UserError, match=r"refs\(unc\)\.json: no such file; there is no refs\(unc\)\.p either; look here"):
        read_refs(tmp_path, "refs(unc)", "look here")
    write_json(tmp_path / "refs(unc).json", {"refs": []})
    with pytest.raises(UserError, match="holds a dict, expected a list"):
        read_refs(tmp_path, "refs(unc)", "")
    (tmp_path / "refs(unc).json").write_text(json.dumps([ENTRY])[:-4])
    with pytest.raises(UserError, match="not readable as JSON"):
        read_refs(tmp_path, "refs(unc)", "")


def test_halves_of_characters_do_not_reach_a_tokenizer(tmp_path):
    write_json(tmp_path / "refs(unc).json", [{**ENTRY, "sentences": [{"sent": "left \ud83d"}]}])
    assert read_refs(tmp_path, "refs(unc)", "")[0].sentences == ("left ?",)
