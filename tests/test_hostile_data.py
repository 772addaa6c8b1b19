"""Data sets that somebody made to do harm, or that were damaged: one sentence each, nothing is run, and the check goes on."""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from fixtures_partonomy import question, write_entries, write_folder
from PIL import Image

from data_pipelines import json_array
from data_pipelines.check import check_folder, main
from data_pipelines.checks.options import Options
from data_pipelines.checks.pictures import read_picture
from data_pipelines.images import load_image
from data_pipelines.masks import segmentation_area
from data_pipelines.show import main as show
from data_pipelines.stats import main as stats
from plum_jax.errors import UserError

NAME = "partonomy_qa_pairs_train.json"


@pytest.fixture(autouse=True)
def _no_test_hangs():
    """What would wait for ever ends here with an error."""

    def stop(*_):
        raise TimeoutError("the check hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path):
    """Two good images; tests add a bad entry or image as the last one."""
    entries = write_folder(tmp_path / "data", images=2)
    (tmp_path / "data" / "dataset.json").unlink()
    tmp_path.joinpath("secret.png").write_bytes((tmp_path / "data/images/train_0.png").read_bytes())
    return tmp_path / "data", entries


def add(folder, image_path, hw=(40, 72), **changes):
    path, entries = folder
    write_entries(path, [*entries, {**question(image_path, hw), **changes}])
    return path


def only_problem(path, options=None):
    """The text of the one problem there is; the good images were all read."""
    report = check_folder(path, options)
    assert report["images"]["read"] >= 2
    (found,) = report["problems"]
    assert found["entry"] == 6
    return found["problem"]


@pytest.mark.parametrize(
    "name", ["../secret.png", "images/../../secret.png", "/etc/passwd", "C:\\x.png", "images\\..\\x", "a\0b"]
)
def test_paths_that_leave_the_folder(folder, name):
    assert "give a path relative to the folder" in only_problem(add(folder, name))


def test_a_link_out_of_the_folder_is_not_followed(folder, tmp_path):
    path = add(folder, "images/link.png")
    (path / "images/link.png").symlink_to(tmp_path / "secret.png")
    assert "images/link.png: is a link out of" in only_problem(path)
    assert main([str(path)]) == 1
    assert main([str(path), "--follow-links"]) == 0
    (path / "images/link.png").unlink()
    (path / "images/link.png").symlink_to(path / "images/train_0.png")  # a link that stays inside is fine
    assert main([str(path)]) == 0


def test_a_gallery_does_not_show_files_behind_links(folder, tmp_path):
    path = add(folder, "images/link.png")
    (path / "images/link.png").symlink_to(tmp_path / "secret.png")
    write_entries(path, json.loads((path / NAME).read_text())[-1:])
    page = tmp_path / "page.html"
    assert show([str(path), "--out", str(page)]) == 0
    assert "is a link out of" in page.read_text() and "data:image" not in page.read_text()
    assert main([str(path), "--html", str(page)]) == 1
    assert "is a link out of" in page.read_text() and "data:image" not in page.read_text()
    assert show([str(path), "--out", str(page), "--follow-links"]) == 0
    assert "data:image/jpeg" in page.read_text()


def test_a_folder_of_links_out_of_it(folder, tmp_path):
    path = add(folder, "more/secret.png")
    (path / "more").symlink_to(tmp_path)
    assert "is a link out of" in only_problem(path)


def test_a_link_to_itself(folder):
    path = add(folder, "images/loop.png")
    (path / "images/loop.png").symlink_to("loop.png")
    assert "cannot be read" in only_problem(path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_decompression_bomb(folder):
    path = add(folder, "images/bomb.png")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (path / "images/bomb.png").write_bytes(content)
    text = only_problem(path)
    assert "decompression bomb" in text and "shrink the image" in text


def test_a_bomb_in_the_text_of_a_png(folder):
    path = add(folder, "images/text.png")
    text = b"zTXt" + b"a\0\0" + zlib.compress(b"x" * 80_000_000)
    whole = (path / "images/train_0.png").read_bytes()
    (path / "images/text.png").write_bytes(whole[:33] + chunk(text[:4], text[4:]) + whole[33:])
    assert "not a readable image" in only_problem(path)


def test_a_file_that_is_too_large(folder):
    path = add(folder, "images/huge.png")
    with open(path / "images/huge.png", "wb") as file:
        file.truncate(3 << 30)  # takes no room on disk
    assert "has 3.2 GB" in only_problem(path)


@pytest.mark.parametrize("reader", [load_image, lambda path: read_picture(path).fault])
def test_a_pipe_is_not_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.png")
    try:
        text = reader(tmp_path / "pipe.png")
    except UserError as error:
        text = str(error)
    assert "a folder, device or pipe, not a file" in text


def test_a_pipe_a_device_and_a_folder_as_images(folder):
    path, entries = folder
    os.mkfifo(path / "images/pipe.png")
    (path / "images/device.png").symlink_to("/dev/zero")
    (path / "images/folder.png").mkdir()
    names = ("pipe", "device", "folder")
    write_entries(path, entries + [question(f"images/{name}.png", (40, 72)) for name in names])
    found = check_folder(path, Options(follow_links=True))["problems"]
    assert [problem["entry"] for problem in found] == [6, 7, 8]
    assert all("a folder, device or pipe, not a file" in problem["problem"] for problem in found)


def test_a_pipe_as_a_question_file(folder):
    path, _ = folder
    os.mkfifo(path / "partonomy_qa_pairs_val.json")
    (found,) = check_folder(path)["problems"]
    assert found["file"] == "partonomy_qa_pairs_val.json" and "device or pipe" in found["problem"]


def test_an_image_without_read_permission(folder, monkeypatch):
    path = add(folder, "images/closed.png")
    (path / "images/closed.png").write_bytes(b"")
    whole = open

    def refuse(file, *args, **kwargs):
        if str(file).endswith("closed.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return whole(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)  # tests may run as root, whom no permission stops
    assert "closed.png: cannot be read (Permission denied)" in only_problem(path)


def test_a_question_file_without_read_permission(folder, monkeypatch):
    path, _ = folder

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(json_array, "check_regular", refuse)
    (found,) = check_folder(path)["problems"]
    assert "cannot be read (Permission denied)" in found["problem"]


MASKS = {
    "counts past the size": ({"size": [40, 72], "counts": [2000, 2000]}, "run lengths cover 4000 pixels"),
    "counts of billions": ({"size": [40, 72], "counts": [10**18]}, "not a run-length string"),
    "counts that overflow": ({"size": [40, 72], "counts": "o" * 50}, "not a compressed COCO run-length string"),
    "negative counts": ({"size": [40, 72], "counts": [-5, 2885]}, "not a run-length string"),
    "a size of terabytes": ({"size": [10**6, 10**6], "counts": [10**12]}, "larger than any image"),
    "a size of words": ({"size": ["a", 3], "counts": [3]}, "not two positive whole numbers"),
    "corners that are no numbers": ({"size": [40, 72], "polygon": [float("nan"), 1, 2, 3, 4, 5]}, "polygon is [NaN, 1"),
    "corners at infinity": ({"size": [40, 72], "polygon": [float("inf"), 1, 2, 3, 4, 5]}, "polygon is [Infinity"),
    "corners far away": ({"size": [40, 72], "polygon": [10**300, 1, 2, 3, 4, 5]}, "polygon is [1000000"),
    "an odd polygon": ({"size": [40, 72], "polygon": [1, 1, 9, 9, 1, 9, 4]}, "polygon has 7 numbers"),
    "a polygon of two points": ({"size": [40, 72], "polygon": [1, 1, 9, 9]}, "polygon has 4 numbers"),
    "no dictionary": ("counts", "has no size"),
    "a wrapped list": ({"segmentation": [1]}, "has no size"),
}


@pytest.mark.parametrize("mask, said", MASKS.values(), ids=MASKS)
def test_masks_that_cannot_be(folder, mask, said):
    path, entries = folder
    entry = question("images/train_0.png", (40, 72))
    entry["segmentations"]["base"].append(mask)
    write_entries(path, [*entries, entry])
    text = only_problem(path)
    assert text.startswith("mask of 'base': ") and said in text
    with pytest.raises(ValueError):
        segmentation_area(mask)


@pytest.mark.parametrize("content, said", [
    ("[" * 200_000, "is nested too deeply"),
    ('[{"a":' * 50_000, "is nested too deeply"),
    ('[{"image_path": "x"', "not readable as JSON"),
    ('{"a": 1}', "does not start with ["),
    ("", "does not start with ["),
])  # fmt: skip
def test_question_files_that_are_no_lists(folder, content, said):
    path, _ = folder
    (path / "partonomy_qa_pairs_val.json").write_text(content, encoding="utf-8")
    report = check_folder(path)
    (found,) = report["problems"]
    assert found["file"] == "partonomy_qa_pairs_val.json" and said in found["problem"]
    assert report["files"][NAME]["questions"] == 6


def test_a_file_that_is_not_utf_8(folder):
    path, _ = folder
    (path / "partonomy_qa_pairs_val.json").write_bytes('[{"image_path": "caf\xe9"}]'.encode("latin-1"))
    (found,) = check_folder(path)["problems"]
    assert "is not UTF-8" in found["problem"]


def test_an_element_of_any_size_is_not_read_into_memory(folder, monkeypatch):
    path, _ = folder
    monkeypatch.setattr(json_array, "BLOCK", 1 << 12)
    monkeypatch.setattr(json_array, "MOST", 1 << 20)
    (path / "partonomy_qa_pairs_val.json").write_text('["' + "x" * (8 << 20) + '"]', encoding="utf-8")
    (found,) = check_folder(path)["problems"]
    assert "one element has more than 1 million characters" in found["problem"]


def test_keys_that_stand_twice(folder):
    path, _ = folder
    text = (path / NAME).read_text(encoding="utf-8")
    (path / NAME).write_text('[{"image_label": "cat", ' + text.strip()[2:], encoding="utf-8")
    (found,) = check_folder(path)["problems"]
    assert found["entry"] == 0 and "key 'image_label' stands twice" in found["problem"]


def test_control_characters_do_not_reach_the_terminal(folder, capsys):
    path = add(folder, "images/\x1b[2J\u202egnp.png")
    assert main([str(path)]) == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\\x1b[2J" in text and "\u202e" not in text


def test_halves_of_surrogate_pairs_can_be_reported(folder, tmp_path, capsys):
    path = add(folder, "images/\ud800.png", image_label="\ud800")
    assert main([str(path), "--json"]) == 1
    path = add(folder, "images/train_0.png", image_label="\ud800")
    assert main([str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert stats([str(path), "--json"]) == 0
    assert stats([str(path)]) == 0


def test_text_of_the_data_is_no_markup_on_a_page(folder, tmp_path):
    path = add(folder, "images/train_0.png", image_label="<script>alert(1)</script>")
    assert show([str(path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_dataset_json_of_another_kind(folder):
    path, _ = folder
    (path / "dataset.json").write_text("[" * 100_000, encoding="utf-8")
    (found,) = check_folder(path)["problems"]
    assert found["file"] == "dataset.json"


def test_a_truncated_image_is_found(folder):
    path = add(folder, "images/half.jpg")
    Image.effect_noise((72, 40), 50).save(path / "images/half.jpg")
    whole = (path / "images/half.jpg").read_bytes()
    (path / "images/half.jpg").write_bytes(whole[: len(whole) // 2])
    assert "not a readable image" in only_problem(path)


def test_the_command_ends_with_one_line_for_wrong_use(tmp_path):
    (tmp_path / "x.json").write_text("nothing")
    os.mkfifo(tmp_path / "pipe.json")
    root = str(Path(__file__).resolve().parent.parent)
    for place, said in ((tmp_path / "x.json", "neither a COCO file"), (tmp_path / "pipe.json", "cannot be read"),
                        (tmp_path, "no *_qa_pairs"), (tmp_path / "none", "no such folder or file")):  # fmt: skip
        command = [sys.executable, "-m", "plum_jax.cli", "data", "check", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=20)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
