import os

import pytest

from data_pipelines.folders import Listing, identity, image_size, inside, present, read_coco, read_json, stems
from plum_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.JPG", "c.png", "sub/d.jpg", "sub/deep/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_which_names_are_there_with_one_listing_per_folder(folder, monkeypatch):
    names = ["a.jpg", "A.jpg", "sub/d.jpg", "sub/missing.jpg", "sub/deep/e.jpg", "none/f.jpg", "a.jpg/g.jpg"] * 3
    listed, real = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or real(path))
    assert present(folder, names, "") == {"a.jpg", "sub/d.jpg", "sub/deep/e.jpg"}
    assert len(listed) <= 4
    with pytest.raises(UserError, match="nowhere: no such folder; look here"):
        present(folder / "nowhere", [], "look here")
    with pytest.raises(UserError, match=r"a\.jpg: no such folder"):
        present(folder / "a.jpg", [], "")


def test_stems(folder):
    assert stems(folder, (".jpg",), "") == {"a": "a.jpg", "b": "b.JPG"}
    with pytest.raises(UserError, match="no such folder; look here"):
        stems(folder / "nowhere", (".jpg",), "look here")


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "x/../../a.jpg", "C:\\a.jpg", "..\\a.jpg", "", "  ", None, 5, "a\0.jpg"]
)
def test_names_that_leave_the_folder(name):
    assert not inside(name)


def test_names_and_entries():
    assert inside("train2017/000000000009.jpg")
    assert inside("00/images/..dots.jpg")
    assert image_size({"height": 3, "width": 4}) == (3, 4)
    for entry in ({}, {"height": 3}, {"height": 3, "width": 4.0}, {"height": 0, "width": 4}, {"height": True, "width": 4}):
        assert image_size(entry) is None
    assert [identity({"id": value}, "id") for value in (3, "x", None, [], 1.5)] == [3, "x", None, None, None]


@pytest.mark.parametrize(
    ("content", "match"),
    [("{", "not readable as JSON"), ("[" * 100_000, "nested too deeply"), ("\xff", "not readable as JSON"), ("[]", "no list")],
)
def test_files_that_are_no_coco_files(tmp_path, content, match):
    path = tmp_path / "train.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"train\.json: .*{match}"):
        read_coco(path, "look here")
    with pytest.raises(UserError, match=r"none\.json: no such file; look here"):
        read_json(tmp_path / "none.json", "look here")


def test_a_link_to_itself_hides_no_other_image(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert present(tmp_path, ["a.jpg", "b.jpg", "folder.jpg", "loop.jpg"], "advice") == {"a.jpg"}
    assert Listing((tmp_path / "none", tmp_path)).find("a.jpg") == str(tmp_path / "a.jpg")
