"""plum data check on folders of questions: what makes a question doubtful, copies, and the released Core."""

import json

import numpy as np
import pytest
from fixtures_partonomy import question, write_entries, write_folder
from PIL import Image

from data_pipelines.check import check_folder, main
from data_pipelines.checks.core import NUMBERS
from data_pipelines.checks.options import Options
from plum_jax import cli

NAME = "partonomy_qa_pairs_train.json"


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "data")
    return tmp_path / "data"


def test_a_missing_image_and_an_empty_mask_are_said_on_the_page(folder, tmp_path):
    entries = json.loads((folder / NAME).read_text())[:1]
    hw = entries[0]["segmentations"]["base"][0]["size"]
    entries[0]["segmentations"]["base"] = [{"size": hw, "counts": [hw[0] * hw[1]]}]
    write_entries(folder, [*entries, question("images/none.png", (40, 72))])
    assert main([str(folder), "--html", str(tmp_path / "page.html")]) == 1
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "no mask" in text and "no such image" in text
    assert text.count("<article") == 2


@pytest.mark.parametrize("arguments, said", [
    (["data", "show", "{0}", "--out", "{0}"], "give --out a file"),
    (["data", "check", "{0}", "--html", "{0}/no/page.html"], "give --html a file"),
    (["data", "check", "{0}", "--workers", "0"], "--workers is 0"),
    (["data", "show", "{0}", "--out", "{0}/x.html", "--max", "0"], "--max 0: give"),
    (["data", "check", "{0}", "{0}"], "several folders at once"),
])  # fmt: skip
def test_wrong_use(folder, capsys, arguments, said):
    assert cli.main([argument.format(folder) for argument in arguments]) == 2
    assert said in capsys.readouterr().err


def test_ambiguous_questions_and_boxes(folder):
    entries = json.loads((folder / NAME).read_text())
    other = json.loads(json.dumps(entries[0]))
    del other["segmentations"]["pole"]
    other["answer_parts"] = [[name for name in names if name != "pole"] or ["lid"] for names in other["answer_parts"]]
    other["answer_choices"] = entries[0]["answer_choices"]
    second = question(other["image_path"], tuple(other["segmentations"]["base"][0]["size"]), parts=("base", "lamp shade"))
    del second["segmentations"]["pole"]
    write_entries(folder, [*entries, second])
    (found,) = check_folder(folder)["warnings"]
    assert "shows 2 objects 'desk lamp' and no box says which" in found["problem"]
    boxed = [{**entry, "highlight_box": [1, 1, 9, 9]} for entry in [*entries, second]]
    write_entries(folder, boxed)
    assert check_folder(folder)["warnings"] == []


def test_copies_and_pictures_that_look_the_same(folder):
    image = folder / "images/train_0.png"
    (folder / "images/same.png").write_bytes(image.read_bytes())
    pixels = np.asarray(Image.open(folder / "images/train_1.png")).copy()
    pixels[0, 0] ^= 3
    Image.fromarray(pixels).save(folder / "images/near.png")
    sizes = {name: Image.open(folder / f"images/{name}.png").size[::-1] for name in ("same", "near")}
    write_entries(folder, [question(f"images/{name}.png", hw) for name, hw in sizes.items()], "val")
    report = check_folder(folder)
    assert report["problems"] == []
    same, warning = report["warnings"]
    assert f"image images/same.png is the same file as images/train_0.png of {NAME}" in same["problem"]
    assert same["file"] == "partonomy_qa_pairs_val.json" and same["entry"] == 0
    assert "image images/near.png looks the same as images/train_1.png of split train" in warning["problem"]


def test_names_that_differ_in_spelling(folder):
    entries = json.loads((folder / NAME).read_text())
    entries[0]["image_label"] = "Desk_Lamp"
    write_entries(folder, entries)
    assert any("objects 'Desk_Lamp' and 'desk lamp' differ" in found["problem"] for found in check_folder(folder)["warnings"])


def test_the_released_core_is_compared_with_what_it_holds(tmp_path, folder):
    (folder / NAME).rename(folder / "partonomy_qa_pairs.json")
    (folder / "dataset.json").unlink()
    report = check_folder(folder)
    assert report["problems"] == []
    said = [found["problem"] for found in report["warnings"]]
    assert f"1 objects, PARTONOMY-Core has {NUMBERS['objects']}" in said
    assert "12 masks, PARTONOMY-Core has 4,968" in said
    assert any(text.startswith("question types identification_with_label, part_to_whole") for text in said)
    assert len(check_folder(folder, Options(expect="partonomy-core"))["problems"]) == len(said) == 6


def test_a_part_of_the_images(folder):
    report = check_folder(folder, Options(max_images=2))
    assert report["images"]["named"] == 4 and report["images"]["read"] == 2
