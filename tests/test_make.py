"""`plum data make`: the released layout, the same bytes for any number of workers and any hash seed, and safe writing."""

import collections
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import make
from data_pipelines.images import load_image
from data_pipelines.make import Arguments, main, make_dataset, parse_split_sizes
from data_pipelines.masks import part_masks
from data_pipelines.partonomy.records import QUESTION_TYPES, read_questions
from data_pipelines.synthetic.instances import HELD_OUT
from plum_jax.errors import UserError

SIZES = (("train", 60), ("val", 4), ("test", 15), ("heldout", 14))
ARGUMENTS = Arguments(seed=3, split_sizes=SIZES)
SMALL = Arguments(seed=3, split_sizes=(("val", 2),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "data"
    make_dataset(out, ARGUMENTS, workers=2)
    return out


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_layout(folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["dataset.json", "images", *(f"partonomy_qa_pairs_{split}.json" for split, _ in SIZES)]
    )
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["seed"] == 3
    assert len(dataset["objects"]) == 15
    for split, size in SIZES:
        assert len(list((folder / "images" / split).iterdir())) == size
        questions = read_questions(
            folder / f"partonomy_qa_pairs_{split}.json"
        )  # checks every field, masks of correct parts too
        assert dataset["splits"][split] == {"images": size, "questions": len(questions)}
        assert len({q.image_path for q in questions}) == size
        assert {part for q in questions for part in q.segmentations} <= set(dataset["parts"])
    assert not list(folder.parent.glob(".*")), "no temporary folder stays behind"


def test_all_types_occur_and_nearly_every_image_has_all(folder):
    counts = collections.Counter(q.question_type for q in read_questions(folder / "partonomy_qa_pairs_train.json"))
    assert sorted(counts) == sorted(QUESTION_TYPES)
    for question_type in ("identification", "identification_with_label", "part_to_whole", "whole_to_part"):
        assert counts[question_type] == 60
    assert min(counts.values()) > 40


def test_masks_match_the_pictures_and_every_correct_part_has_one(folder):
    for split, _ in SIZES:
        for path, questions in group(read_questions(folder / f"partonomy_qa_pairs_{split}.json")).items():
            image = load_image(folder / path)
            masks = part_masks(questions[0].segmentations, image.shape[:2])
            for entries in questions[0].segmentations.values():
                assert all(entry["size"] == list(image.shape[:2]) for entry in entries)
            assert np.sum(list(masks.values()), 0).max() == 1
            for question in questions:
                assert all(masks[part].sum() >= 60 for part in question.correct_parts)
                assert question.segmentations == questions[0].segmentations
            identification = next(q for q in questions if q.question_type == "identification")
            assert list(identification.correct_parts) == sorted(masks)


def group(questions):
    groups = {}
    for question in questions:
        groups.setdefault(question.image_path, []).append(question)
    return groups


def test_held_out_pairs_are_absent_from_the_other_splits(folder):
    for split, _ in SIZES:
        for question in read_questions(folder / f"partonomy_qa_pairs_{split}.json"):
            pair = set(HELD_OUT.get(question.image_label, ("no part",)))
            assert (pair <= set(question.segmentations)) == (split == "heldout")


def test_same_bytes_for_any_number_of_workers_and_hash_seed(folder, tmp_path):
    make_dataset(tmp_path / "one", ARGUMENTS, workers=1)
    assert contents(tmp_path / "one") == contents(folder)
    sizes = ",".join(f"{split}={size}" for split, size in SIZES)
    command = [
        sys.executable,
        "-m",
        "data_pipelines.make",
        "--out",
        str(tmp_path / "two"),
        "--seed",
        "3",
        "--split-sizes",
        sizes,
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    subprocess.run([*command, "--workers", "1"], env=environment, cwd=Path(__file__).parents[1], check=True, timeout=300)
    assert contents(tmp_path / "two") == contents(folder)


def test_pictures_do_not_depend_on_the_size_of_the_split(folder, tmp_path):
    make_dataset(tmp_path / "few", Arguments(seed=3, split_sizes=(("train", 5),)))
    few, many = contents(tmp_path / "few"), contents(folder)
    pictures = [path for path in few if path.startswith("images/")]
    assert len(pictures) == 5
    assert all(few[path] == many[path] for path in pictures)


def test_another_seed_is_other_data(tmp_path):
    for seed in (0, 1):
        make_dataset(tmp_path / str(seed), Arguments(seed=seed, split_sizes=(("val", 2),)))
    zero, one = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert not set(zero.values()) & set(one.values())


def test_fewer_questions_per_image(tmp_path):
    make_dataset(tmp_path / "data", Arguments(seed=0, split_sizes=(("train", 30),), questions_per_image=3))
    questions = group(read_questions(tmp_path / "data" / "partonomy_qa_pairs_train.json"))
    assert all(1 <= len(group) <= 3 for group in questions.values())
    assert all("identification_with_label" in [q.question_type for q in group] for group in questions.values())
    assert len({q.question_type for group in questions.values() for q in group}) == 10


def test_complete_folder_is_reused_and_others_are_not_touched(tmp_path, capsys):
    out = tmp_path / "data"
    make_dataset(out, SMALL)
    before = (out / "dataset.json").stat().st_mtime_ns
    assert main(["--out", str(out), "--seed", "3", "--split-sizes", "val=2"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert (out / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other arguments.*--overwrite"):
        main(["--out", str(out), "--seed", "4", "--split-sizes", "val=2"])
    assert main(["--out", str(out), "--seed", "4", "--split-sizes", "val=2", "--overwrite", "--workers", "1"]) == 0
    assert json.loads((out / "dataset.json").read_text())["seed"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        make_dataset(tmp_path, SMALL, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match="is a file"):
        make_dataset(tmp_path / "thesis.txt", SMALL, overwrite=overwrite)


@pytest.mark.parametrize(
    "content", ["3", "[]", '{"arguments": 5}', '{"arguments": {"maker": 1}}', '{"arguments": {"maker": "me"}}', "[" * 100_000]
)
def test_a_foreign_dataset_json_is_never_replaced(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="other files"):
        make_dataset(tmp_path, SMALL, overwrite=True)
    assert (tmp_path / "dataset.json").read_text() == content


def test_an_incomplete_dataset_is_not_reused(tmp_path):
    make_dataset(tmp_path / "data", SMALL)
    (tmp_path / "data/partonomy_qa_pairs_val.json").unlink()
    with pytest.raises(UserError, match="incomplete.*--overwrite"):
        make_dataset(tmp_path / "data", SMALL)


def test_out_must_be_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for out, message in (("", "output folder"), ("file", "file"), ("file/below", "file"), ("n" * 300, "cannot be written")):
        with pytest.raises(UserError, match=message):
            main(["--out", out, "--split-sizes", "val=2", "--workers", "1"])
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    stale = f".data.{host}-{ended.pid}.abcd1234"
    kept = [
        f".data.{host}-{os.getpid()}.abcd1234",
        f".data.elsewhere-{ended.pid}.abcd1234",
        f".other.{host}-{ended.pid}.abcd1234",
    ]
    for name in (stale, *kept, ".data.backup"):
        (tmp_path / name / "images").mkdir(parents=True)
    make_dataset(tmp_path / "data", SMALL)
    assert sorted(os.listdir(tmp_path)) == sorted(["data", ".data.backup", *kept])


def test_run_after_a_kill(tmp_path):
    command = [sys.executable, "-m", "data_pipelines.make", "--out", str(tmp_path / "data"), "--workers", "2"]
    log = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen([*command, "--split-sizes", "train=8000"], cwd=Path(__file__).parents[1], **log)
    while not list(tmp_path.glob(".data.*/images")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    make_dataset(tmp_path / "data", SMALL)
    time.sleep(1)  # a worker that lived on would make the folder again
    assert os.listdir(tmp_path) == ["data"]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    make_dataset(tmp_path / "data", SMALL)
    assert (tmp_path / "data" / "dataset.json").is_file()


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "make_questions", lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_dataset(tmp_path / "data", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_split_sizes_are_parsed_and_checked():
    assert parse_split_sizes("test=3,train=8000") == (("train", 8000), ("test", 3))
    for text in ("", "train", "train=0", "train=-1", "train=ten", "train=1,train=2", "dev=5", "train=1,"):
        with pytest.raises(UserError, match="--split-sizes"):
            parse_split_sizes(text)


@pytest.mark.parametrize(
    "option", [["--image-size", "7"], ["--workers", "0"], ["--questions-per-image", "11"], ["--seed", "-1"]]
)
def test_bad_numbers_are_user_errors(tmp_path, option):
    with pytest.raises(UserError, match=option[0]):
        main(["--out", str(tmp_path / "data"), *option])
    assert list(tmp_path.iterdir()) == []
