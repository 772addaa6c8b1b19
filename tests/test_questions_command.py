"""`plum data questions`: every source to a folder in the released layout, the same from any worker, hash seed or restart."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from part_sources import (
    HW,
    LEFT,
    OBJECTS,
    RIGHT,
    WHOLE,
    Coco,
    box_mask,
    strips,
    write_core,
    write_image,
    write_own,
    write_paco,
    write_partimagenet,
    write_pascal,
)

from data_pipelines import questions
from data_pipelines.check import check_folder
from data_pipelines.images import load_image
from data_pipelines.masks import encode_rle, part_masks
from data_pipelines.partonomy import build, resume
from data_pipelines.partonomy.descriptor import Descriptor, Instance, read_descriptor, write_descriptor
from data_pipelines.partonomy.records import QUESTION_TYPES, conversations, read_questions
from plum_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    return questions.main([*map(str, arguments), "--workers", "1"])


def arguments_of(source, root):
    """Command line for a source that is written into `root`."""
    if source == "core":
        return [write_core(root), "--format", "core"]
    if source == "coco":
        path, images, hierarchy = write_own(root)
        return [path, "--format", "coco", "--images", images, "--hierarchy", hierarchy]
    path, images = {"paco_lvis": write_paco, "pascal_part": write_pascal, "partimagenet": write_partimagenet}[source](root)
    if source == "descriptor":
        return []
    return [path, "--format", source, "--images", images]


def read_all(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("source", ["paco_lvis", "pascal_part", "partimagenet", "core", "coco"])
def test_all_ten_types_from_every_source(tmp_path, source, capsys):
    out = tmp_path / "out"
    assert run(*arguments_of(source, tmp_path / "in"), "--out", out) == 0
    assert check_folder(out)["problems"] == []
    text = capsys.readouterr().out
    assert f"Next: plum data check {out}" in text
    dataset = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    found = {split: read_questions(out / f"partonomy_qa_pairs_{split}.json") for split in ("train", "val")}
    assert {split: len({q.image_path for q in some}) for split, some in found.items()} == {"train": 10, "val": 2}
    for split, some in found.items():
        assert collections.Counter(q.question_type for q in some) == dict.fromkeys(
            QUESTION_TYPES, dataset["splits"][split]["images"]
        )
        assert dataset["splits"][split]["questions"] == len(some)
    names = {"folding chair": "chair"}
    for question in found["train"] + found["val"]:
        assert len(question.answer_choices) == 5
        kind = names.get(question.image_label, question.image_label)
        parts = strips(WHOLE, OBJECTS[kind])
        if source == "partimagenet":  # its typing error is mended
            parts = {"tire" if part == "wheel" else part: box for part, box in parts.items()}
        masks = part_masks(question.segmentations, load_image(out / question.image_path).shape[:2])
        assert masks.keys() == parts.keys()
        for part, mask in masks.items():
            np.testing.assert_array_equal(mask, box_mask(parts[part]))
        assert set(question.correct_parts) <= set(parts)
        assert conversations(question)
    assert dataset["objects"] == sorted(dataset["part_graph"])
    assert dataset["parts"] == sorted({part for parts in dataset["part_graph"].values() for part in parts})
    assert dataset["report"]["no_question"] == {}


def test_same_bytes_from_any_hash_seed_and_number_of_workers(tmp_path):
    source = [str(item) for item in arguments_of("paco_lvis", tmp_path / "in")]
    outs = []
    for seed, workers in (("0", "1"), ("77", "1"), ("5", "2")):
        out = tmp_path / f"out{seed}"
        subprocess.run(
            [sys.executable, "-m", "plum_jax.cli", "data", "questions", *source, "--out", str(out), "--workers", workers],
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        outs.append(read_all(out))
    assert outs[0] == outs[1] == outs[2]
    assert set(os.listdir(tmp_path)) == {"in", "out0", "out77", "out5"}


def test_order_of_the_annotations_does_not_matter(tmp_path):
    source = arguments_of("pascal_part", tmp_path / "in")
    value = json.loads(source[0].read_text())
    value["images"].reverse()
    value["annotations"].reverse()
    other = tmp_path / "other.json"
    other.write_text(json.dumps(value))
    run(*source, "--out", tmp_path / "a")
    run(other, *source[1:], "--out", tmp_path / "b")
    for split in ("train", "val"):
        name = f"partonomy_qa_pairs_{split}.json"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_types_or_seeds(tmp_path):
    source = arguments_of("paco_lvis", tmp_path / "in")
    run(*source, "--out", tmp_path / "all")
    run(*source, "--out", tmp_path / "few", "--types", "positive,identification_with_label")
    run(*source, "--out", tmp_path / "seed", "--seed", "1")
    full, few, seed = (json.loads((tmp_path / n / "partonomy_qa_pairs_train.json").read_text()) for n in ("all", "few", "seed"))
    assert few == [q for q in full if q["question_type"] in ("positive", "identification_with_label")]
    assert seed != full


def test_splits_of_the_source_are_kept(tmp_path):
    train, images = write_paco(tmp_path / "in")
    val, _ = write_paco(tmp_path / "in2", images=6, first=10)
    for path in (tmp_path / "in2/coco/train2017").iterdir():
        path.rename(images / "train2017" / path.name)
    out = tmp_path / "out"
    run(f"train={train}", f"val={val}", "--format", "paco_lvis", "--images", images, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert {split: counts["images"] for split, counts in report["splits"].items()} == {"train": 12, "val": 3}
    assert report["left_out"] == {"image that an earlier split has": 3}
    assert check_folder(out)["problems"] == []


def test_image_folder_by_split(tmp_path):
    train, _ = write_partimagenet(tmp_path, split="train")
    val, _ = write_partimagenet(tmp_path, images=6, split="val", first=9)  # equal names
    write_image(tmp_path / "PartImageNet/images/val/n01440764_2.JPEG", 2)  # and an equal picture
    images = tmp_path / "PartImageNet/images/{split}"
    run(f"train={train}", f"val={val}", "--format", "partimagenet", "--images", images, "--out", tmp_path / "out")
    assert check_folder(tmp_path / "out")["problems"] == []
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {split: counts["images"] for split, counts in report["splits"].items()} == {"train": 12, "val": 5}
    assert report["left_out"] == {"object of an equal image of the same name": 1}
    names = {question.image_path for question in read_questions(tmp_path / "out/partonomy_qa_pairs_val.json")}
    assert all(len(Path(name).stem) == len("n01440764_0-01234567") for name in names)


def test_reference_descriptor_with_boxed_copies(tmp_path):
    rng, instances = np.random.default_rng(0), []
    for number in range(30):
        kind = list(OBJECTS)[number % len(OBJECTS)]
        names = [f"/elsewhere/p{number}.jpg"] + [f"/elsewhere/p{number}-{k}.jpg" for k in range(1, rng.integers(1, 4))]
        for name in names:
            write_image(tmp_path / "new" / Path(name).name, len(instances))
            masks = {f"{kind}--part:{p}": [encode_rle(box_mask(b))] for p, b in strips(WHOLE, OBJECTS[kind]).items()}
            instances.append(Instance(name, f"object--{kind}", masks))
    descriptor = Descriptor("pascal_part", tuple(instances), {}, {"object": [f"object--{kind}" for kind in OBJECTS]})
    write_descriptor(tmp_path / "d.json", descriptor)
    out = tmp_path / "out"
    run(tmp_path / "d.json", "--format", "descriptor", "--images", tmp_path, "--map", f"/elsewhere={tmp_path}/new",
        "--out", out, "--splits", "train=0.5,val=0.5", "--types", "identification")  # fmt: skip
    photos = {}
    for split in ("train", "val"):
        for question in read_questions(out / f"partonomy_qa_pairs_{split}.json"):
            photos.setdefault(Path(question.image_path).stem.partition("-")[0], set()).add(split)
    assert len(photos) == 30
    assert all(len(splits) == 1 for splits in photos.values())
    assert sum("train" in splits for splits in photos.values()) == 15


def write_pairs(root):
    """Twelve images, half of them with a second object of the same kind."""
    coco = Coco()
    for number in range(12):
        kind, parts = list(OBJECTS.items())[number % len(OBJECTS)]
        image = coco.image(f"{number}.jpg")
        write_image(root / f"{number}.jpg", number)
        for place in (LEFT, RIGHT)[: 1 + number // 6]:
            coco.annotate(image, kind, place)
        for part, box in strips(LEFT, parts).items():
            coco.annotate(image, f"{kind}:{part}", box)
    return coco.write(root / "a.json")


@pytest.mark.parametrize("ambiguous", ["keep", "draw", "drop"])
def test_one_of_several_objects(tmp_path, ambiguous):
    path, out = write_pairs(tmp_path / "in"), tmp_path / "out"
    run(path, "--format", "coco", "--images", tmp_path / "in", "--out", out, "--ambiguous", ambiguous, "--splits", "train=1",
        "--types", "identification")  # fmt: skip
    asked = read_questions(out / "partonomy_qa_pairs_train.json")
    boxes = [question.highlight_box for question in asked]
    report = json.loads((out / "report.json").read_text())
    assert report["ambiguous"] == 6
    assert check_folder(out)["problems"] == []
    if ambiguous == "keep":
        assert sorted(filter(None, boxes)) == [LEFT] * 6
    elif ambiguous == "drop":
        assert len(asked) == 6
        assert report["left_out"]["one of several objects of its kind in the image"] == 6
    else:
        assert boxes == [None] * 12
        drawn = [question.image_path for question in asked if "-box-" in question.image_path]
        assert len(drawn) == 6
        picture = load_image(out / drawn[0]).astype(int)
        assert picture[1:4, LEFT[2], 0].mean() > 180  # red above noise


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    source = arguments_of("paco_lvis", tmp_path / "in")
    run(*source, "--out", tmp_path / "whole")
    monkeypatch.setattr(build, "IMAGES_A_CHUNK", 5)
    monkeypatch.setattr(build, "QUESTIONS_A_CHUNK", 5)
    calls, ask = [], build.ask_chunk

    def interrupted(tasks, *arguments):
        calls.append(len(tasks))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ask(tasks, *arguments)

    monkeypatch.setattr(build, "ask_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*source, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(build, "fit_chunk", None)  # its results are kept
    run(*source, "--out", tmp_path / "out")
    assert calls == [5, 5, 5, 2]
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "whole"]


def test_what_stands_in_the_output_folder(tmp_path, capsys):
    source, out = arguments_of("paco_lvis", tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    run(*source, "--out", out)
    before = read_all(out)
    capsys.readouterr()
    run(*source, "--out", out)
    assert "is complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds questions made from other things"):
        run(*source, "--out", out, "--seed", "3")
    run(*source, "--out", out, "--seed", "3", "--overwrite")
    assert read_all(out) != before
    (out / "partonomy_qa_pairs_val.json").unlink()
    with pytest.raises(UserError, match="is incomplete or edited"):
        run(*source, "--out", out, "--seed", "3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        run(*source, "--out", tmp_path / "mine", "--overwrite")
    with pytest.raises(UserError, match="is not a folder"):
        run(*source, "--out", tmp_path / "mine/a.txt")


def test_two_runs_at_once_and_leftovers_of_other_arguments(tmp_path):
    with resume.resumable_folder(tmp_path / "out", "a" * 64) as (_, data):
        (data / "x").write_text("1")
        with (
            pytest.raises(UserError, match="is being written by another run"),
            resume.resumable_folder(tmp_path / "out", "a" * 64),
        ):
            pass
    assert (tmp_path / "out/x").read_text() == "1"
    with pytest.raises(KeyError), resume.resumable_folder(tmp_path / "new", "b" * 64):
        raise KeyError
    assert (tmp_path / f".new.questions-{'b' * 16}").is_dir()
    with pytest.raises(UserError, match="wrong"), resume.resumable_folder(tmp_path / "new", "c" * 64):
        raise UserError("wrong")
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_json_report_and_saved_descriptor(tmp_path, capsys):
    source = arguments_of("core", tmp_path / "in")
    missing = tmp_path / "in/images/things--dog/4.jpg"
    missing.unlink()
    run(*source, "--out", tmp_path / "out", "--json", "--link", "--save-descriptor", tmp_path / "d.json")
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"] == {"mask of an image that is not there": 5}
    assert report["splits"]["train"]["types"].keys() == set(QUESTION_TYPES)
    assert report["reused"] is False
    assert len(read_descriptor(tmp_path / "d.json").instances) == 11
    assert all(path.is_symlink() and path.exists() for path in (tmp_path / "out/images").iterdir())
    (tmp_path / "d.json").unlink()
    run(*source, "--out", tmp_path / "out", "--json", "--link", "--save-descriptor", tmp_path / "d.json")
    assert json.loads(capsys.readouterr().out) == {**report, "reused": True}
    assert len(read_descriptor(tmp_path / "d.json").instances) == 11


def test_reasons_names_and_synonyms(tmp_path, capsys):
    source = arguments_of("pascal_part", tmp_path / "in")
    (tmp_path / "objects.yaml").write_text("object--dog: hound\nmug: cup\n")
    (tmp_path / "parts.json").write_text(json.dumps({"wing": "pinion", "leg": "limb", "seat": "limb"}))
    (tmp_path / "synonyms.yaml").write_text("- [pinion, fin]\n- [head, beak]\n")
    (tmp_path / "not.txt").write_text("2008_000001.jpg\n2008_000007.jpg\n")
    names = ["--object-names", tmp_path / "objects.yaml", "--part-names", tmp_path / "parts.json"]
    more = ["--synonyms", tmp_path / "synonyms.yaml", "--exclude", tmp_path / "not.txt", "--splits", "test=1"]
    run(*source, "--out", tmp_path / "out", *names, *more)
    text = capsys.readouterr().out
    assert "parts called 'limb' now: leg, seat" in text
    assert "       2 image of --exclude" in text
    assert "12 may be several" not in text
    assert "10 may be several objects together" in text
    asked = read_questions(tmp_path / "out/partonomy_qa_pairs_test.json")
    assert {q.image_label for q in asked} == {"bird", "car", "chair", "cup", "hound"}
    common = [q for q in asked if q.image_label == "bird" and q.question.endswith("in common with a hound?")]
    assert all(q.correct_parts == ("beak", "limb", "tail") for q in common)
    chairs = [q for q in asked if q.image_label == "chair"]
    assert all(len(q.segmentations["limb"]) == 2 for q in chairs)


def test_too_few_objects_is_counted(tmp_path, capsys):
    coco = Coco()
    for number, (kind, parts) in enumerate(list(OBJECTS.items())[:3]):
        image = coco.image(f"{number}.jpg")
        write_image(tmp_path / f"{number}.jpg", number)
        for part, box in strips(WHOLE, parts).items():
            coco.annotate(image, f"{kind}:{part}", box)
    run(coco.write(tmp_path / "a.json"), "--format", "coco", "--images", tmp_path, "--out", tmp_path / "out")
    text = capsys.readouterr().out
    assert "3 part_to_whole: too few other objects for the wrong answers" in text
    assert "3 whole_to_part: too few other objects for the wrong answers" in text


@pytest.mark.parametrize(
    "change, said",
    [
        (["--splits", "train=0.5"], "add up to 0.5; make it 1"),
        (["--types", "identification,what"], "'what' is no question type"),
        (["--workers", "0"], "--workers: 0"),
        (["--seed", "-1"], "--seed: -1"),
        (["--hierarchy", "x"], "--hierarchy is for --format coco"),
        (["--map", "a=b"], "--map is for --format descriptor"),
        (["--format", "coco", "--hierarchy", "none.yaml"], "none.yaml: cannot be read"),
        (["--synonyms", "none.yaml"], "none.yaml: cannot be read"),
        (["--images", "/nowhere"], "no instance is left to ask about: 12 times image not found; check --images"),
        (["--format", "pascal_part"], "is not object:part"),
        (["--format", "descriptor"], "has no dataset_name"),
        (["--mismatched-masks", "error"], "has a mask of 60 x 80, the upright image is 20 x 20"),
    ],
)
def test_wrong_use_in_a_sentence(tmp_path, change, said):
    source = arguments_of("paco_lvis", tmp_path / "in")
    if "--mismatched-masks" in change:
        write_image(tmp_path / "in/coco/train2017/000000000003.jpg", hw=(20, 20))
    arguments = [*source, "--out", tmp_path / "out", *change, *([] if "--workers" in change else ["--workers", "1"])]
    with pytest.raises(UserError, match=said):
        questions.main([str(item) for item in arguments])
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_wrong_sources_in_a_sentence(tmp_path):
    path, images = write_paco(tmp_path)
    rest = ["--format", "paco_lvis", "--images", images, "--out", tmp_path / "out"]
    for sources, said in (
        ([tmp_path / "no.json"], "no.json: no such file or folder"),
        ([path, path], "is one of several; write each as NAME=FILE"),
        ([f"train={path}", f"train={path}"], "with different names"),
        ([f"train={path}", f"val={tmp_path}/no.json"], "no.json: no such file or folder"),
        ([f"train={path}", "--splits", "train=1"], "the sources are splits already"),
    ):
        with pytest.raises(UserError, match=said):
            run(*sources, *rest)
    with pytest.raises(UserError, match="--images: give the folder"):
        run(path, "--format", "paco_lvis", "--out", tmp_path / "out")
    for text, said in (("- tire", "is not a list of groups"), ("- [a, b]\n- [b, c]", "'b' is in the groups 1 and 2")):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            run(path, *rest, "--synonyms", tmp_path / "s.yaml")
    with pytest.raises(UserError, match="is not OLD=NEW"):
        write_descriptor(tmp_path / "d.json", Descriptor("x", (), {}, {}))
        run(tmp_path / "d.json", "--format", "descriptor", "--images", images, "--out", tmp_path / "out", "--map", "x")


def test_masks_of_rotated_pictures_turn(tmp_path):
    path, images = write_pascal(tmp_path / "in")
    for number in range(12):
        write_image(images / f"2008_{number:06d}.jpg", number, exif=6)
    run(path, "--format", "pascal_part", "--images", images, "--out", tmp_path / "out", "--types", "identification")
    assert check_folder(tmp_path / "out")["problems"] == []
    question = read_questions(tmp_path / "out/partonomy_qa_pairs_train.json")[0]
    mask = part_masks(question.segmentations, HW[::-1])
    for part, box in strips(WHOLE, OBJECTS[question.image_label]).items():
        np.testing.assert_array_equal(mask[part], np.rot90(box_mask(box), -1))
