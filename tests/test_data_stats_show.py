"""plum data stats and show on folders of questions: every number by hand, and what stands on the page."""

import json
import re

import numpy as np
import pytest
from fixtures_partonomy import question, write_entries, write_folder
from PIL import Image

from data_pipelines.check import check_folder, main
from data_pipelines.checks.core import NUMBERS
from data_pipelines.checks.options import Options
from data_pipelines.checks.targets import find_target
from data_pipelines.show import main as show
from data_pipelines.stats import describe
from data_pipelines.stats import main as stats
from plum_jax import cli

NAME = "partonomy_qa_pairs_train.json"


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "data")
    return tmp_path / "data"


def numbers(folder):
    return describe(find_target([folder]))["files"][NAME]


def test_every_object_and_mask_counts_once(folder):
    found = numbers(folder)
    expected = {
        "images": 4,
        "objects": 1,
        "objects_in_images": 4,
        "parts": 3,
        "object_part_pairs": 3,
        "masks": 12,
        "questions": 12,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["masks_per_image"] == {"mean": 3.0, "median": 3.0, "least": 3.0, "most": 3.0}
    assert found["parts_per_object"] == {"3": 4}
    assert found["types"] == {"identification_with_label": 4, "part_to_whole": 4, "positive_with_label": 4}
    assert found["together"] == [["base", "lamp shade", 4], ["base", "pole", 4], ["lamp shade", "pole", 4]]
    assert found["correct_position"] == {"0": 5, "1": 1, "2": 5, "3": 1}
    assert found["correct_object_position"] == {"1": 4}
    assert found["parts_in_answer"] == {"2": 4, "3": 8}
    assert sum(count for _, _, count in found["mask_area"]["histogram"]) == 12


def test_overlap_is_that_of_the_sets_of_parts(folder):
    overlap = numbers(folder)["answer_overlap"]
    # base, lamp shade, pole against base; base, lid; lid, pole; lid
    shares = [1 / 3, 1 / 4, 1 / 4, 0]
    expected = {"mean": sum(shares) / 4, "mean_of_max": 1 / 3, "mean_of_min": 0.0}
    assert overlap["parts"]["identification_with_label"] == pytest.approx(expected, abs=1e-4)
    # base, lamp, shade, pole: two words for one part
    assert overlap["words"]["identification_with_label"]["mean"] == pytest.approx((1 / 4 + 1 / 5 + 1 / 5) / 4, abs=1e-4)


def test_text_of_the_command(folder, capsys):
    assert stats([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "         12  masks" in text
    assert re.search(r"identification_with_label +4 +33\.3%  #+", text)
    assert stats([str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][NAME]["masks"] == 12


def test_a_bad_entry_is_counted_and_left_out(folder):
    entries = json.loads((folder / NAME).read_text())
    entries[0]["segmentations"]["base"].append({"size": [3, 3], "counts": [1]})
    write_entries(folder, [*entries, {"question": 3}])
    found = numbers(folder)
    assert found["left_out"] == {"entry that is no question": 1}
    assert found["unreadable_masks"] == 1
    assert found["objects_in_images"] == 5  # with another mask it is another object


def test_gallery_is_one_file_without_a_script(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert show([str(folder), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 12
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 12
    assert text.count('class="mask"') == 36  # what the answer does not name is drawn too
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    for name in ("type", "object", "part"):
        assert f'aria-label="{name}"' in text
    identifier = re.search(r'href="#(f\d+)">positive_with_label <small>4</small>', text)[1]
    assert f"#{identifier}:target ~ .cards > :not(.{identifier})" in text
    assert len(re.findall(rf'<article class="card [^"]*\b{identifier}\b', text)) == 4
    assert text.count('<li class="correct"') == 12


def test_gallery_is_limited_and_evenly_spaced(folder, tmp_path):
    page = tmp_path / "page.html"
    assert show([str(folder), "--out", str(page), "--max", "3"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 3
    kinds = set(re.findall(r'href="#f\d+">(\w+_\w+_?\w*) <small>1</small>', text))
    assert kinds == {"identification_with_label", "positive_with_label", "part_to_whole"}
    assert len(set(re.findall(r"images/train_(\d)\.png", text))) > 1


def test_a_missing_image_and_an_empty_mask_are_said_on_the_page(folder, tmp_path):
    entries = json.loads((folder / NAME).read_text())[:1]
    hw = entries[0]["segmentations"]["base"][0]["size"]
    entries[0]["segmentations"]["base"] = [{"size": hw, "counts": [hw[0] * hw[1]]}]
    write_entries(folder, [*entries, question("images/none.png", (40, 72))])
    assert main([str(folder), "--html", str(tmp_path / "page.html")]) == 1
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "empty mask" in text and "no such image" in text
    assert "What the check found" in text and "Errors (2)" in text


def test_page_of_a_folder_without_faults(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main([str(folder), "--html", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == str(page)
    assert "No problems." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments, said", [
    (["data", "show", "{0}", "--out", "{0}"], "give --out a file"),
    (["data", "check", "{0}", "--html", "{0}/no/page.html"], "give --html a file"),
    (["data", "check", "{0}", "--workers", "0"], "--workers is 0"),
    (["data", "show", "{0}", "--out", "{0}/x.html", "--max", "0"], "--max is 0"),
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
    (error,), (warning,) = report["problems"], report["warnings"]
    assert "image images/same.png is byte for byte images/train_0.png of split train" in error["problem"]
    assert error["file"] == "partonomy_qa_pairs_val.json" and error["entry"] == 0
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
