"""The Python commands of docs/data say what they should about small folders in the layout of the page."""

import json
import re
from pathlib import Path

import fixtures_partonomy
import test_reason
import test_vqa

PAGES = Path(__file__).resolve().parent.parent / "docs" / "data"


def run(page, capsys, **names):
    """Runs each `python -c` of a page with its placeholders replaced -> the lines that they print."""
    commands = re.findall(r'^    python -c "(.+)"$', (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert commands
    for command in commands:
        for name, path in names.items():
            assert f"'{name}'" in command
            command = command.replace(f"'{name}'", repr(str(path)))
        exec(command, {})
    return capsys.readouterr().out.splitlines()


def test_llava_instruct(tmp_path, capsys):
    entries = [test_vqa.entry(0), test_vqa.entry(1, "none.jpg")]
    test_vqa.write(tmp_path, entries)
    mixed = [test_vqa.entry(0, "coco/train2017/000000000001.jpg"), test_vqa.entry(1, "gqa/images/1.jpg")]
    test_vqa.write(tmp_path, mixed, "llava_dataset/llava_v1_5_mix665k.json", ("gqa/images/1.jpg",))
    assert run("llava_instruct.md", capsys, DATA=tmp_path) == ["1 {'image file missing': 1}", "2"]


def test_reasonseg(tmp_path, capsys):
    test_reason.write(tmp_path, {"a": test_reason.annotation()}, said={"a": test_reason.SAID})
    assert run("reasonseg.md", capsys, DATA=tmp_path) == ["1 {} 0"]


def test_the_response_file_of_the_page_is_the_one_that_is_read(tmp_path):
    text = (PAGES / "reasonseg.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"train/(\S+responses\.json)", text)
    root = test_reason.write(tmp_path, {"a": test_reason.annotation()})
    (root / test_reason.FOLDER / "train" / name).write_text(json.dumps({"a": test_reason.SAID}))
    assert test_reason.ReasonSeg(root).without_response == 0


def test_partonomy(tmp_path, capsys):
    for name in ("paco", "pascal"):
        fixtures_partonomy.write_folder(tmp_path / name, images=2)
    assert run("partonomy.md", capsys, PACO=tmp_path / "paco", PASCAL=tmp_path / "pascal") == ["4 {}"]
