"""plum data check, stats and show on the roots of the training data sets."""

import json

import numpy as np
import pytest
from fixtures_folders import HW, blocks, box, coco, write_image, write_json, write_labels, write_pickle

from data_pipelines.check import check_folder, main
from data_pipelines.checks.families import PLACES, find_datasets
from data_pipelines.checks.options import Options
from data_pipelines.checks.targets import find_target
from data_pipelines.show import main as show
from data_pipelines.stats import main as stats


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


def refs(image=1, annotation=1, sentence="left car"):
    return {
        "ref_id": 1, "ann_id": annotation, "image_id": image, "category_id": 1, "split": "train",
        "sentences": [{"sent_id": 1, "sent": sentence, "raw": sentence, "tokens": sentence.split()}],
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Every training data set, two images each; COCO images are shared."""
    names = ["000000000001.jpg", "000000000002.jpg"]
    for number, name in enumerate(names):
        write_image(tmp_path / "coco/train2017" / name, seed=number)
        write_labels(tmp_path / "cocostuff/train2017" / name.replace("jpg", "png"), blocks(0, 16, 255))
        write_image(tmp_path / f"ade20k/images/training/ADE_{number}.jpg", seed=10 + number)
        write_labels(tmp_path / f"ade20k/annotations/training/ADE_{number}.png", blocks(1, 5, 0))
        write_image(tmp_path / f"mapillary/training/images/m{number}.jpg", seed=20 + number)
        write_labels(tmp_path / f"mapillary/training/v2.0/labels/m{number}.png", blocks(0, 1), palette=True)
        write_image(tmp_path / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages" / name, seed=30 + number)
        write_image(tmp_path / "partimagenet/PartImageNet/images/train" / name, seed=40 + number)
        write_image(tmp_path / "refer_seg/images/mscoco/images/train2014" / name, seed=50 + number)
        write_image(tmp_path / "refer_seg/images/saiapr_tc-12" / name, seed=60 + number)
        write_image(tmp_path / f"reason_seg/ReasonSeg/train/r{number}.jpg", seed=70 + number)
        shape = {"label": "target", "points": [[5, 5], [30, 5], [30, 30]]}
        write_json(
            tmp_path / f"reason_seg/ReasonSeg/train/r{number}.json",
            {"text": ["the cat"], "is_sentence": False, "shapes": [shape]},
        )
    labels = [{"readable": "Car"}, {"readable": "Road"}]
    write_json(tmp_path / "mapillary/config_v2.0.json", {"labels": labels})
    ring = [box(5, 5, 30, 30)]
    parts = {
        "vlpart/paco/annotations/paco_lvis_v1_train.json": ([f"train2017/{name}" for name in names], "mug:handle"),
        "vlpart/pascal_part/train.json": (names, "cat:eye"),
    }
    for place, (files, category) in parts.items():
        write_json(tmp_path / place, coco(files, [(1, 1, ring), (2, 1, ring)], [{"name": category}]))
    categories = [{"name": "Car Tier", "supercategory": "Car"}]
    place = "partimagenet/PartImageNet/annotations/train/train.json"
    write_json(tmp_path / place, coco(names, [(1, 1, ring), (2, 1, ring)], categories))
    for name, file in (
        ("refclef", "refs(unc)"),
        ("refcoco", "refs(unc)"),
        ("refcoco+", "refs(unc)"),
        ("refcocog", "refs(umd)"),
    ):
        write_json(
            tmp_path / "refer_seg" / name / "instances.json", coco(names, [(1, 1, ring), (2, 1, ring)], [{"name": "car"}])
        )
        write_pickle(tmp_path / "refer_seg" / name / f"{file}.p", [refs(), refs(2, 2)])
    write_json(tmp_path / "refer_seg/grefcoco/instances.json", coco(names, [(1, 1, ring), (2, 1, ring)], [{"name": "car"}]))
    write_json(tmp_path / "refer_seg/grefcoco/grefs(unc).json", [refs(annotation=[1]), refs(2, [-1], "a dog")])
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A car."}]
    write_json(
        tmp_path / "llava_dataset/llava_instruct_150k.json",
        [{"id": name, "image": name, "conversations": turns} for name in names],
    )
    return tmp_path


def test_every_data_set_is_found_counted_and_read(root, capsys):
    assert set(find_datasets(root)) == set(PLACES)
    assert main([str(root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert set(report["datasets"]) == set(PLACES)
    for name, found in report["datasets"].items():
        assert found["splits"]["train"]["records"] == 2, name
    ade = report["datasets"]["ade20k"]
    assert ade["splits"]["train"]["expected"] == 20_210
    assert ade["images"]["train"] == {"pairs": 2, "read": 2, "faulty": 0}
    assert report["datasets"]["vqa"]["images"] == {"named": 2, "read": 2, "unreadable": 0}
    counts = [found["problem"] for found in report["warnings"] if found["file"] == "ade20k train"]
    assert counts == ["2 records, the complete data set has 20,210"]
    assert main([str(root)]) == 0
    assert "ade20k: found" in capsys.readouterr().out


def problems(root):
    return "\n".join(f"{found['file']}: {found['problem']}" for found in check_folder(root)["problems"])


def test_faults_of_files_are_named_and_end_nothing(root):
    (root / "ade20k/images/training/ADE_0.jpg").write_bytes(b"no image")
    write_labels(root / "ade20k/annotations/training/ADE_1.png", np.full((10, 12), 200))
    (root / "coco/train2017/000000000002.jpg").unlink()
    (root / "mapillary/config_v2.0.json").unlink()
    (root / "vlpart/pascal_part/train.json").write_text("[" * 100_000, encoding="utf-8")
    write_pickle(root / "refer_seg/refcoco/refs(unc).p", [Bomb()])
    (root / "llava_dataset/llava_instruct_150k.json").write_bytes(b'[{"id": "\xff"}]')
    text = problems(root)
    for expected in (
        "ade20k train: " + str(root / "ade20k/images/training/ADE_0.jpg") + ": not a readable image",
        f"ADE_1.png: is 10 x 12, the upright image {HW[0]} x {HW[1]}",
        "ADE_1.png: pixel value 200 has no class, the last one is 150",
        "cocostuff train: 1 x image file missing",
        "mapillary train: ",
        "paco_lvis_v1_train.json: 1 image not found in",
        "pascal_part train: ",
        "its pickle calls __builtin__.exec",
        "vqa train: " + str(root / "llava_dataset/llava_instruct_150k.json") + ": is not UTF-8",
    ):
        assert expected in text
    assert "refcoco+" not in text


def test_a_data_set_that_is_not_there_is_no_fault(root):
    (root / "ade20k").rename(root / "elsewhere")
    report = check_folder(root, Options(max_images=1))
    assert "ade20k" not in report["datasets"]
    assert report["problems"] == []
    assert report["datasets"]["cocostuff"]["images"]["train"] == {"pairs": 2, "read": 1, "faulty": 0}


def test_stats_draw_samples_of_each(root, capsys):
    assert stats([str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["datasets"]
    assert found["ade20k"]["train"]["drawn"] == {"samples": 2, "unreadable": 0, "dialogues": 4, "turns": 4, "spans": 4}
    assert found["ade20k"]["train"]["by_part"] == {"tree": 2, "wall": 2}
    assert found["ade20k"]["train"]["mask_area"]["mean"] == pytest.approx(1 / 3)
    assert found["vqa"]["train"]["masks"] == 0
    assert "no split" in found["vqa"]["val"]["problem"] or "does not exist" in found["vqa"]["val"]["problem"]
    assert stats([str(root)]) == 0
    assert "ade20k train" in capsys.readouterr().out


def test_show_has_samples_of_each(root, tmp_path, capsys):
    assert show([str(root), "--out", str(tmp_path / "page.html"), "--max", "26"]) == 0
    assert "26 samples: " in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in PLACES:
        assert f">{name}, " in page
    assert ">no image<" not in page
    assert "<script" not in page
    assert find_target([root]).kind == "root"


def test_show_says_how_many_samples_it_could_not_read(root, tmp_path):
    (root / "ade20k/annotations/training/ADE_1.png").write_bytes(b"no image")
    (root / "mapillary/config_v2.0.json").unlink()  # the whole data set
    page = tmp_path / "page.html"
    assert show([str(root), "--out", str(page)]) == 0
    assert "2 not readable (see plum data check)" in page.read_text(encoding="utf-8")
