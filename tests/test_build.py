import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from build_fixtures import assert_equal_samples, shard_bytes
from fixtures_partonomy import write_entries, write_folder

from data_pipelines.arrayrecord import ArrayRecordSource, find_build
from data_pipelines.arrayrecord import main as verify
from data_pipelines.build import build, main
from data_pipelines.explanatory import Explanatory
from plum_jax import cli
from plum_jax.errors import UserError

TESTS = Path(__file__).resolve().parent
QUIET = dict(log=lambda line: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_folder(root, images=12)
    return root


def command(*arguments):
    return [sys.executable, "-m", "data_pipelines.build", *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}


def errors_of(built):
    with open(built / "errors.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_samples_of_a_build_are_those_of_the_folder(folder, tmp_path):
    built = build("explanatory", folder, tmp_path, shard_records=5, **QUIET)
    assert built == tmp_path / "plum_explanatory/partonomy/1.0.0"
    for options in (
        dict(per_image=1),
        dict(per_image=3),
        dict(per_image=2, question_weights={"default": 1, "positive_with_label": 5}),
    ):
        raw, stored = Explanatory(folder, **options), ArrayRecordSource(tmp_path, **options)
        assert (len(raw), raw.family, raw.dataset, raw.grounded) == (
            len(stored),
            stored.family,
            stored.dataset,
            stored.grounded,
        )
        assert stored.parts == raw.parts and stored.skipped == raw.skipped
        for index in range(len(raw)):
            for seed in range(3):
                one, other = (source.sample(index, np.random.default_rng(seed)) for source in (stored, raw))
                assert_equal_samples(one, other)


def test_the_bytes_do_not_depend_on_the_number_of_workers(folder, tmp_path):
    results = []
    for workers in (1, 2, 5):
        out = tmp_path / str(workers)
        arguments = ("explanatory", "--root", folder, "--out", out, "--shard-records", 3, "--workers", workers)
        done = subprocess.run(command(*arguments), cwd=TESTS.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "train has 12 records, 4 shards; left out: none" in done.stdout
        results.append(shard_bytes(out))
    assert results[0] == results[1] == results[2]
    assert sum("array_record" in name for name in results[0]) == 4


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_build_continues_to_the_same_bytes(folder, tmp_path, workers):
    arguments = ["build_fixtures:Slow", "--root", folder, "--shard-records", "2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(*arguments, "--out", killed, "--workers", workers), cwd=TESTS.parent, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (parts := list(killed.rglob("parts/*.json"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert parts and len(list(killed.rglob("parts/*.json"))) < 6  # in the middle
    facts = json.loads((find_build(killed) / "build.json").read_text())
    assert facts["splits"]["train"]["status"] == "unfinished"
    with pytest.raises(UserError, match="unfinished; repeat plum data build with --resume"):
        ArrayRecordSource(killed)
    shards = {path: path.stat().st_mtime_ns for path in killed.rglob("plum_*array_record*") if path.name[0] != "."}
    again = subprocess.run(
        command(*arguments, "--out", killed, "--workers", 2, "--resume"), cwd=TESTS.parent, env=environment(),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert any(path.stat().st_mtime_ns == when for path, when in shards.items())  # a whole shard is not written again
    once = subprocess.run(
        command(*arguments, "--out", whole), cwd=TESTS.parent, env=environment(), capture_output=True, timeout=60
    )
    assert once.returncode == 0 and shard_bytes(killed) == shard_bytes(whole)
    assert not list(killed.rglob("*.tmp"))


def test_a_worker_that_is_killed_ends_the_build_and_resume_continues(folder, tmp_path):
    arguments = ["build_fixtures:Slow", "--root", folder, "--out", tmp_path, "--shard-records", "2", "--workers", "2"]
    process = subprocess.Popen(
        command(*arguments), cwd=TESTS.parent, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while len(found := children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(int(found[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "a worker ended with status -9; repeat the command with --resume" in said
    assert main(["build_fixtures:Slow", "--root", str(folder), "--out", str(tmp_path), "--shard-records", "2", "--resume"]) == 0
    assert len(ArrayRecordSource(tmp_path, verify=True)) == 12


def bad_folder(root):
    """Twelve images, of which 1 is broken, 2 vanished after the listing, 3 has a malformed mask and 4 one of another size; a
    question of image 5 is none."""
    entries = write_folder(root, images=12)
    (root / "images/train_1.png").write_bytes((root / "images/train_1.png").read_bytes()[:200])
    (root / "images/train_2.png").unlink()
    (root / "images/train_2.png").symlink_to(root / "nowhere.png")
    for entry in entries:
        if entry["image_path"].endswith("_3.png"):
            entry["segmentations"]["base"][0]["counts"] = "!!"
        if entry["image_path"].endswith("_4.png"):
            entry["segmentations"]["pole"][0]["segmentation"]["size"] = [30, 30]
    entries[15]["answer_types"] = ["correct"] * 5
    write_entries(root, entries)


def test_bad_records_are_listed_and_end_nothing(tmp_path):
    bad_folder(tmp_path / "raw")
    built = build("explanatory", tmp_path / "raw", tmp_path, shard_records=4, **QUIET)
    facts = json.loads((built / "build.json").read_text())["splits"]["train"]
    assert facts["skipped"] == {
        "broken image": 1, "image file missing": 2, "malformed mask": 1, "mask of another size": 1, "question not readable": 1,
    }  # fmt: skip
    rows = errors_of(built)
    assert [row["reason"] for row in rows if row["record"]] == ["broken image", "malformed mask", "mask of another size"]
    assert [row["record"] for row in rows if row["record"]] == ["1", "2", "3"]
    assert "images/train_1.png: not a readable image" in rows[-3]["message"] and str(tmp_path) not in rows[-3]["message"]
    assert rows[-1]["message"].endswith("images/train_4.png: mask is 30 x 30, the upright image 72 x 48")
    stored = ArrayRecordSource(built)
    assert len(stored) == facts["records"] == 8
    assert {stored.stored(i)[2]["image"] for i in range(8)} == {f"images/train_{k}.png" for k in (0, 5, 6, 7, 8, 9, 10, 11)}


def test_strict_ends_at_the_first_bad_record(tmp_path):
    write_folder(tmp_path / "raw", images=6)
    (tmp_path / "raw/images/train_4.png").write_bytes(b"no image")
    arguments = [
        "explanatory",
        "--root",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
        "--strict",
        "--shard-records",
        "2",
    ]
    with pytest.raises(UserError, match=r"record 4, broken image: .*train_4.png: not a readable image"):
        main(arguments)
    done = subprocess.run(command(*arguments, "--workers", 2, "--resume"), cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "record 4, broken image" in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_without_a_usable_record(tmp_path):
    write_folder(tmp_path / "raw", images=2)
    for path in (tmp_path / "raw/images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="no record of train can be used; the first fault: .*train_0.png: not a readable image"):
        build("explanatory", tmp_path / "raw", tmp_path / "out", **QUIET)


def test_resume_repairs_a_damaged_shard_and_refuses_other_data(folder, tmp_path):
    built = build("explanatory", folder, tmp_path, shard_records=4, **QUIET)
    before = shard_bytes(built)
    damaged = sorted(built.glob("*.array_record-*"))[1]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    said = []
    build("explanatory", folder, tmp_path, shard_records=4, resume=True, log=said.append)
    assert "2 of 3 shards of train are whole" in said[0] and shard_bytes(built) == before
    with pytest.raises(UserError, match="holds split train already; continue or repair it with --resume"):
        build("explanatory", folder, tmp_path, shard_records=4, **QUIET)
    with pytest.raises(UserError, match="was begun with other shard_records .*shard_records 4 then, 5 now"):
        build("explanatory", folder, tmp_path, shard_records=5, resume=True, **QUIET)
    other = tmp_path / "other"
    write_folder(other, images=12, seed=1)
    write_entries(other, json.loads((other / "partonomy_qa_pairs_train.json").read_text())[::-1])
    with pytest.raises(UserError, match="was begun with other index_files"):
        build("explanatory", other, tmp_path, shard_records=4, resume=True, **QUIET)


def test_splits_are_added_to_a_build(folder, tmp_path):
    raw = tmp_path / "raw"
    write_folder(raw, images=3)
    write_folder(raw, images=2, split="val")
    (raw / "images/val_1.png").write_bytes(b"no image")
    out = str(tmp_path / "out")
    assert main(["explanatory", "--root", str(raw), "--out", out, "--split", "val"]) == 0
    assert main(["explanatory", "--root", str(raw), "--out", out, "--split", "train"]) == 0
    assert len(ArrayRecordSource(out)) == 3 and len(ArrayRecordSource(out, split="val")) == 1
    assert [(row["split"], row["reason"]) for row in errors_of(find_build(out))] == [("val", "broken image")]
    with pytest.raises(UserError, match="has no split 'test', only train, val; build it with --split test"):
        ArrayRecordSource(out, split="test")


def test_a_source_without_whole_records_is_stored_as_samples(folder, tmp_path):
    built = build("build_fixtures:DrawsOnly", folder, tmp_path, draws=6, **QUIET)
    assert built.parent.name == "draws_plusonly"
    stored, raw = ArrayRecordSource(built), Explanatory(folder)
    drawn = [raw.sample(4, np.random.default_rng((4, number))) for number in range(6)]
    seen = set()
    for seed in range(40):
        sample = stored.sample(4, np.random.default_rng(seed))
        number = next(n for n in range(6) if sample.dialogues == drawn[n].dialogues)
        assert_equal_samples(sample, drawn[number])
        seen.add(sample.dialogues)
    assert len(seen) == len({sample.dialogues for sample in drawn}) > 1
    with pytest.raises(UserError, match="per_image is 2, but the build has per_image None; only none can be chosen"):
        ArrayRecordSource(built, per_image=2)


def test_a_folder_is_a_source_by_itself(folder, tmp_path):
    assert main([str(folder), "--out", str(tmp_path)]) == 0
    assert find_build(tmp_path).parent.name == folder.name == ArrayRecordSource(tmp_path).dataset
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "done" and list(run["seconds"])[0] == f"{folder} explanatory train"
    with pytest.raises(UserError, match="--root is missing: refcoco is no folder"):
        main(["refcoco", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cats"], "'cats' is no source; use ade20k"),
        (["nowhere:Cats"], r"source 'nowhere:Cats' cannot be imported \(No module named 'nowhere'\)"),
        (["explanatory", "--workers", "0"], "--workers is 0; give at least 1"),
        (["explanatory", "--option", "per_image"], "--option 'per_image' is not NAME=VALUE"),
        (["explanatory", "--option", "per_picture=1"], "explanatory has no argument per_picture"),
        (["explanatory", "--split", "../x"], "split '../x' is no name"),
        (["explanatory", "--split", "test"], "has no question file of split 'test'"),
    ],
)
def test_wrong_use_is_one_sentence(folder, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        main([*arguments, "--root", str(folder), "--out", str(tmp_path)])


def test_what_cannot_be_stored_is_left_out(tmp_path):
    """A number that is not finite, half of a surrogate pair: one record is lost, not the build."""
    entries = write_folder(tmp_path / "raw", images=3)
    entries[0]["segmentations"]["lamp\ud800"] = entries[0]["segmentations"]["base"]
    entries[3]["segmentations"]["base"][0]["note"] = float("inf")
    entries[6]["answer_choices"][entries[6]["answer_types"].index("correct")] += " \ud800"
    (tmp_path / "raw/partonomy_qa_pairs_train.json").write_text(json.dumps(entries))
    built = build("explanatory", tmp_path / "raw", tmp_path / "out", **QUIET)
    said = errors_of(built)
    assert [row["reason"] for row in said].count("question not readable") == 1 and "half of a surrogate pair" in str(said)
    assert any(row["reason"] == "unreadable record" and "lamp" not in row["key"] for row in said)


@pytest.mark.parametrize(
    "option",
    ["per_image=x", "per_image=null", "question_types=5", "question_types=[1]", "question_weights=[1]", "dataset=5",
     'question_weights={"identification_with_label": "x"}'],
)  # fmt: skip
def test_options_of_a_wrong_type_are_a_sentence(folder, tmp_path, option, capsys):
    assert cli.main(["data", "build", str(folder), "--out", str(tmp_path / "out"), "--option", option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["json:loads", "builtins:dict", ":", "nope:Class"])
def test_what_is_no_source(folder, tmp_path, name, capsys):
    assert cli.main(["data", "build", name, "--root", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert f"source {name!r}" in capsys.readouterr().err


def test_a_limit_on_the_size_of_files(folder, tmp_path):
    """As a full disk: a sentence, no half of a shard, and --resume goes on."""
    out = tmp_path / "out"
    limited = ["bash", "-c", f"ulimit -f 8; exec {' '.join(command(folder, '--out', out))}"]
    done = subprocess.run(limited, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 2 and "File too large); free some space, then repeat" in done.stderr
    assert not list(out.rglob("*.array_record*"))
    done = subprocess.run(command(folder, "--out", out, "--resume"), capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and verify([str(out)]) == 0
