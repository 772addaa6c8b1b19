"""docs/your_own_parts.md, followed: every command of the page on the example that the page makes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from data_pipelines.explanatory import Explanatory
from data_pipelines.masks import decode_segmentation
from plum_jax import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "your_own_parts.md").read_text(encoding="utf-8")
# The language model alone, small: what is tested is that the data of the page goes through the command of the page.
SMALL = (
    "train.steps=2", "train.log_every=1", "data.global_batch=4", "data.grounded=(1,2)", "model.llama.width=24",
    "model.llama.mlp=32", "model.clip.width=24", "model.clip.mlp=32", "model.clip.depth=1", "model.clip.image_size=48",
    "model.sam.width=24", "model.sam.mlp=32", "model.sam.depth=2", "model.sam.global_blocks=(1,)", "model.sam.out_width=16",
    "model.sam.image_size=32", "model.sam.window=3", "model.decoder.mlp=16", "model.decoder.depth=1", "model.tagger.mlp=32",
    "model.feedback=false", "loss.bce=0", "loss.shape_weight=0", "loss.patch=0", "optim.name=adamw",
    "trainable=llama|span_tagger",
)  # fmt: skip


def command(start):
    """The first command of the page that starts so, as a list of words."""
    (line, *_) = re.findall(rf"^    ({re.escape(start)}.*)$", PAGE, re.MULTILINE)
    return shlex.split(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the example was made, and questions from it, both by the commands of the page."""
    folder = tmp_path_factory.mktemp("own")
    words = command("python tools/make_part_example.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(ROOT / words[1]), *words[2:]], cwd=folder, check=True, env=environment)
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main([*command("plum data questions")[1:], "--workers=1"]) == 0
    finally:
        os.chdir(here)
    return folder


def test_the_example_is_a_coco_data_set_of_visible_parts(folder):
    coco = COCO(folder / "my_parts" / "annotations.json")
    assert len(coco.imgs) == 20 and all((folder / "my_parts" / "images" / i["file_name"]).is_file() for i in coco.imgs.values())
    forms = {type(entry["segmentation"]) for entry in coco.anns.values()}
    assert forms == {list, dict}
    for image in coco.imgs:
        entries = coco.loadAnns(coco.getAnnIds(image))
        names = [coco.cats[entry["category_id"]]["name"] for entry in entries]
        masks = [coco.annToMask(entry) for entry in entries]
        parts = [mask for name, mask in zip(names, masks, strict=True) if ":" in name]
        things = [mask for name, mask in zip(names, masks, strict=True) if ":" not in name]
        assert 1 <= len(things) <= 2 and len(parts) >= 2 * len(things)
        inside = np.bitwise_or.reduce(things) > 0
        for mask in parts:
            assert mask.sum() > 20 and mask[inside].sum() >= 0.8 * mask.sum()
        assert {name.split(":")[0] for name in names} <= {name for name in names if ":" not in name}


def test_the_same_seed_draws_the_same_example(folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tool = [sys.executable, str(ROOT / "tools" / "make_part_example.py"), "--out", "again"]
    subprocess.run(tool, cwd=tmp_path, check=True, env=environment)
    for file in ("annotations.json", "images/0013.jpg"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / "my_parts" / file).read_bytes()


def test_wrong_use_of_the_tool_is_one_sentence(tmp_path):
    tool = [sys.executable, str(ROOT / "tools" / "make_part_example.py"), "--out", "x", "--images", "0"]
    done = subprocess.run(tool, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "--images from 1" in done.stderr and not list(tmp_path.iterdir())


def test_check_finds_no_fault_and_no_image_is_in_both_splits(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(command("plum data check")[1:]) == 0
    assert "no problems" in capsys.readouterr().out
    images = [
        {
            entry["image_path"]
            for entry in json.loads((folder / "my_questions" / f"partonomy_qa_pairs_{split}.json").read_text())
        }
        for split in ("train", "val")
    ]
    assert images[0] and images[1] and not images[0] & images[1] and len(images[0] | images[1]) == 20


def test_the_questions_are_a_source_of_training(folder):
    source = Explanatory(folder / "my_questions", per_image=3)
    assert not source.skipped and len(source) == 16
    for index in range(len(source)):
        sample = source.sample(index, np.random.default_rng(index))
        assert all(decode_segmentation(mask).any() for mask in sample.masks)
        for dialogue in sample.dialogues:
            words = [dialogue.turns[0][1][span.char_start : span.char_end] for span in dialogue.spans]
            assert words and set(words) <= set(source.parts)


def test_train_and_report_as_the_page_says(folder):
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    train = [word.replace("--config=", f"--config={ROOT}/") for word in command("plum train")[1:]]
    for words in ([*train, *(f"--config.{value}" for value in SMALL)], command("plum report")[1:]):
        done = subprocess.run(
            [sys.executable, "-m", "plum_jax.cli", *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "runs" / "parts" / "report.html").stat().st_size > 1000


def test_the_commands_of_the_page_exist():
    for line in re.findall(r"^    (plum .*)$", PAGE, re.MULTILINE):
        table = cli.COMMANDS
        for word in shlex.split(line)[1:]:
            if isinstance(table, dict):
                table = table[word]
        assert isinstance(table, tuple), line
