import json
import shutil

import numpy as np
import pytest
from fixtures_partonomy import question, write_entries, write_folder
from PIL import Image

from data_pipelines.check import check_folder, main
from plum_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def problems(folder):
    return texts(check_folder(folder)["problems"])


def warnings(folder):
    return texts(check_folder(folder)["warnings"])


def texts(found):
    return [f"{p['file']} {p['entry']} {p['problem']}" for p in found]


def test_a_good_folder(folder, capsys):
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "partonomy_qa_pairs_train.json: 12 questions, 4 images, 1 objects, 3 parts, 12 masks" in text
    assert "no problems" in text
    assert main([str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    counts = report["files"]["partonomy_qa_pairs_train.json"]
    assert counts["types"] == {"identification_with_label": 4, "part_to_whole": 4, "positive_with_label": 4}


def test_every_fault_is_listed(folder, capsys):
    entries = [question(f"images/train_{i}.png", Image.open(folder / f"images/train_{i}.png").size[::-1]) for i in range(4)]
    entries[0]["answer_types"] = ["correct"] * 5
    entries[1]["answer_choices"][3] = "Nothing."
    entries[2]["segmentations"]["base"][0]["counts"] = "zzz"
    entries[2]["segmentations"]["wheel"] = [{"size": [8, 9], "counts": [30, 42]}]
    entries[3]["segmentations"]["pole"] = [{"size": list(entries[3]["segmentations"]["base"][0]["size"]), "counts": [64 * 54]}]
    entries.append(question("images/none.png", (4, 4)))
    (folder / "images/broken.png").write_bytes(b"no")
    entries.append(question("images/broken.png", (40, 40)))
    write_entries(folder, entries)
    write_entries(folder, [question("images/train_1.png", (48, 66))], "test")
    (folder / "partonomy_qa_pairs_val.json").write_text("{", encoding="utf-8")
    assert main([str(folder)]) == 1
    text = capsys.readouterr().out
    name = "partonomy_qa_pairs_train.json"
    for expected in (
        f"{name} entry 0: answer_types is",
        f"{name} entry 1: answer 'Nothing.' does not end",
        f"{name} entry 2: mask of 'base': ",
        f"{name} entry 2: mask of 'wheel' is 8 x 9, the upright image 56 x 60",
        f"{name} entry 3: mask of 'pole' is empty",
        f"{name} entry 4: ",
        "none.png: no such image",
        "broken.png: not a readable image",
        f"{name} entry 1: image images/train_1.png is also in partonomy_qa_pairs_test.json",
        "partonomy_qa_pairs_val.json: byte 0: does not start with [",
        f"{name}: part 'wheel' is not among the parts of dataset.json",
    ):
        assert expected in text
    assert "\n1. partonomy" in text


def test_turned_images_are_measured_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(folder / "images/turned.png", exif=exif)
    write_entries(folder, [question("images/turned.png", (40, 60))])
    assert problems(folder) == []
    write_entries(folder, [question("images/turned.png", (60, 40))])
    assert len(problems(folder)) == 3


def test_a_file_without_questions(folder):
    write_entries(folder, [], "val")
    assert problems(folder) == ["partonomy_qa_pairs_val.json None holds no question"]


def test_wrong_mask_values_name_the_entry(folder):
    entry = question("images/train_0.png", (40, 72))
    entry["segmentations"]["base"] = [{"size": [3, 3], "counts": None}, {"size": [1.5, 2], "counts": [3]}]
    write_entries(folder, [entry])
    name = "partonomy_qa_pairs_train.json 0 mask of 'base': "
    first, second = problems(folder)
    assert first.startswith(f"{name}counts is null")
    assert second.startswith(f"{name}segmentation has size [1.5, 2]")


def test_wrong_use(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is neither a COCO file nor a file of questions"):
        main([str(tmp_path / "file")])
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="qa_pairs"):
        main([str(tmp_path)])


def test_warnings_alone_leave_the_status_0(folder, capsys):
    write_folder(folder, images=2, split="val", seed=1)
    shutil.copy(folder / "images/train_0.png", folder / "images/val_0.png")  # sizes are alike, names are not
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert (
        "warnings:\n1. partonomy_qa_pairs_val.json entry 0: image images/val_0.png is the same file as images/train_0.png"
        in text
    )
    assert text.endswith("no problems, 1 warning\n")
    shutil.copy(folder / "images/val_1.png", folder / "images/copy.png")  # twice in one split is no leak
    entries = [question(f"images/{name}.png", Image.open(folder / "images/copy.png").size[::-1]) for name in ("val_1", "copy")]
    write_entries(folder, entries, "val")
    assert check_folder(folder)["warnings"] == []


def test_doubtful_questions_are_warned_of(folder):
    entry = question("images/train_0.png", (40, 72))
    other = question("images/train_0.png", (40, 72))
    other["answer_choices"][1], other["answer_parts"][1] = other["answer_choices"][0], ["pole", "base", "lamp shade"]
    other["answer_choices"][1] = "The desk lamp in the image has the following visible parts: pole, base, and lamp shade."
    write_entries(folder, [entry, other, entry])
    report = check_folder(folder)
    assert report["problems"] == []
    assert [(w["entry"], w["problem"]) for w in report["warnings"]] == [
        (1, "choice 1 is marked incorrect and lists the parts of the correct choice"),
        (2, "is the same question as entry 0"),
    ]


def test_page_shows_faulty_questions_first(folder, capsys):
    page = folder / "check.html"
    entries = [
        question(f"images/train_{i % 4}.png", Image.open(folder / f"images/train_{i % 4}.png").size[::-1]) for i in range(30)
    ]
    entries[29]["answer_choices"][0] = "Nothing."
    write_entries(folder, entries)
    (folder / "partonomy_qa_pairs_val.json").write_text("{", encoding="utf-8")
    assert main([str(folder), "--json", "--html", str(page)]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 14  # ten with a finding (most repeat a question), and the four that are first
    assert text.index("entry 4 ") < text.index("entry 0 ")
    with pytest.raises(UserError, match="check.html/x: cannot be written"):
        main([str(folder), "--html", str(page / "x")])
