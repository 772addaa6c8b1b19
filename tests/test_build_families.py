"""Data of every family, stored and read back: the samples are those of the raw folder, with any options of the draw."""

import contextlib
import json

import numpy as np
import pytest
import test_part_annotations as parts
import test_reason as reason
import test_refer as refer
import test_semantic as semantic
import test_vqa as vqa
from build_fixtures import assert_equal_samples
from fixtures_folders import blocks, box, box_mask, run_lengths
from fixtures_partonomy import write_folder
from source_fixtures import mixture_config

from data_pipelines.arrayrecord import ArrayRecordSource
from data_pipelines.build import build
from data_pipelines.build_sources import open_named
from data_pipelines.mixture import Mixture
from data_pipelines.sources import entries, open_source
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.errors import UserError

THIN = [[5, 5.1, 9, 5.1, 9, 5.2]]  # a ring without a pixel


def ade20k(root):
    maps = {f"ADE_train_{k:08}": np.roll(blocks(0, 1, 3, 150), 7 * k, axis=1) for k in range(3)}
    semantic.ade20k(root, {**maps, "ADE_train_00000009": blocks(0, 0, 0, 0)})


def mapillary(root):
    semantic.mapillary(root, blocks(0, 1, 2, 3))


def pascal_part(root):
    boxes = [(0, 0, 9, 9), (20, 0, 30, 9), (5, 5, 40, 30)]
    found = [(1, 1 + k, [box(*corners)]) for k, corners in enumerate(boxes)] + [(1, 3, [box(30, 20, 50, 35)])]
    parts.pascal(root, [*found, (2, 1, [box(1, 1, 20, 20)]), (3, 1, THIN)], images=("a.jpg", "b.jpg", "c.jpg"))


def refcoco(root):
    refs = [
        refer.ref(1, 1, "man in red", "left guy."),
        refer.ref(1, 2, "the dog"),
        refer.ref(1, 3, "thin"),
        refer.ref(2, 3, "thin"),
    ]
    segmentations = [(1, [box(0, 0, 20, 30)]), (1, run_lengths(box_mask((30, 5, 50, 35)))), (1, THIN)]
    refer.folder(root, refs, segmentations, images=2)


def grefcoco(root):
    refs = [refer.ref(1, [1, 2], "both"), refer.ref(1, [-1], "a unicorn"), refer.ref(1, [2], "the dog")]
    segmentations = [(1, [box(0, 0, 20, 30)]), (1, [box(30, 5, 50, 35)])]
    refer.folder(root, refs, segmentations, "grefcoco", "grefs(unc).json")


def reason_seg(root):
    annotations = {name: reason.annotation() for name in ("a", "b")}
    reason.write(root, annotations, said={"a": reason.SAID}, explained={"a": "They dig with paws."})


def conversations(root):
    vqa.write(
        root, [vqa.entry(0), vqa.entry(1), vqa.entry(2, image=None, turns=({"from": "human", "value": "Why?"}, vqa.ANSWER))]
    )


def questions(root):
    write_folder(root, images=3)


CASES = {  # name of the source -> (writes its folder, records that are left out with their reason, options of the draw)
    "ade20k": (ade20k, {"unreadable record": 1}, ({"per_image": 1}, {"per_image": 2}, {"per_image": 9})),
    "mapillary": (mapillary, {}, ({}, {"per_image": 2})),
    "pascal_part": (pascal_part, {"nothing to draw": 1}, ({"per_image": 1}, {"per_image": 3})),
    "refcoco": (refcoco, {}, ({"per_image": 1}, {"per_image": 4})),
    "grefcoco": (grefcoco, {}, ({"per_image": 2},)),
    "reason": (reason_seg, {}, ({}, {"per_image": 1, "explanatory": 0.9}, {"span": "query"})),
    "vqa": (conversations, {}, ({}, {"per_image": 1})),
    "explanatory": (questions, {}, ({}, {"per_image": 2, "question_weights": {"positive_with_label": 7}})),
}


@pytest.mark.filterwarnings("ignore:.*queries have no response")
@pytest.mark.parametrize("name", CASES)
def test_stored_samples_are_those_of_the_folder(name, tmp_path):
    write, left_out, choices = CASES[name]
    write(tmp_path / "raw")
    built = build(name, tmp_path / "raw", tmp_path / "out", shard_records=2, log=lambda line: None)
    facts = json.loads((built / "build.json").read_text())["splits"]["train"]
    for options in choices:
        raw = open_named(name, tmp_path / "raw", "train", options)
        stored = ArrayRecordSource(tmp_path / "out", **options)
        assert facts["whole_records"] and facts["skipped"] == {**raw.skipped, **left_out}
        assert (stored.family, stored.dataset, stored.grounded) == (raw.family, raw.dataset, raw.grounded)
        usable = []
        for index in range(len(raw)):
            with contextlib.suppress(UserError):
                usable.append((index, raw.sample(index, np.random.default_rng(0)).key))
        assert len(usable) == len(stored) == len(raw) - sum(left_out.values())
        seen = set()
        for place, (index, _) in enumerate(usable):
            for seed in range(12):
                one, other = stored.sample(place, np.random.default_rng(seed)), raw.sample(index, np.random.default_rng(seed))
                assert_equal_samples(one, other)
                seen.add((one.key, one.dialogues))
        assert len(seen) > len(usable) or name == "vqa"  # drawn anew each time


def test_a_run_on_the_build_has_the_rows_of_a_run_on_the_folder(tmp_path):
    for write in (mapillary, questions, conversations):
        write(tmp_path / "raw")
    listed = tuple({"name": name, "weight": weight} for name, weight in (("mapillary", 1), ("explanatory", 2), ("vqa", 1)))
    for name in ("mapillary", "explanatory", "vqa"):
        build(name, tmp_path / "raw", tmp_path / "out", shard_records=2, log=lambda line: None)
    tokenizer = load_tokenizer("tiny")
    raw, stored = (Mixture(mixture_config(sources=listed, root=str(tmp_path / x)), tokenizer) for x in ("raw", "out"))
    assert all(isinstance(source, ArrayRecordSource) for source in stored.sources)
    for index in range(24):
        (row, account), (other, other_account) = raw.row(index), stored.row(index)
        assert row.keys() == other.keys() and account == other_account
        for name, value in row.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_a_run_reads_the_build_where_its_root_holds_one(tmp_path):
    ade20k(tmp_path / "raw")
    questions(tmp_path / "raw")
    for name in ("ade20k", "explanatory"):
        build(name, tmp_path / "raw", tmp_path / "out", log=lambda line: None)
    listed = (
        {"name": "ade20k", "weight": 1},
        {"name": "explanatory", "weight": 2, "options": {"question_weights": {"default": 2}}},
    )
    for root, kind in (("raw", False), ("out", True)):
        config = mixture_config(sources=listed, root=str(tmp_path / root))
        opened = [open_source(entry, 2) for entry in entries(config.data)]
        assert [isinstance(source, ArrayRecordSource) for source in opened] == [kind, kind]
        assert all(len(source.sample(0, np.random.default_rng(0)).dialogues) == 2 for source in opened)
    build("explanatory", tmp_path / "raw", tmp_path / "out", options={"dataset": "again"}, log=lambda line: None)
    with pytest.raises(UserError, match="has explanatory 2 times .*make one of them the root"):
        [open_source(entry, 2) for entry in entries(config.data)]


def test_errors_csv_names_what_the_source_left_out(tmp_path, monkeypatch):
    """Every record by name and reason; those beyond the bound as a number."""
    monkeypatch.setattr("data_pipelines.left_out.MOST_MESSAGES", 2)
    root = tmp_path / "raw"
    ade20k(root)
    for stem in ("x", "y", "z"):
        (root / f"ade20k/images/training/{stem}.jpg").write_bytes(b"")
    built = build("ade20k", root, tmp_path / "out", options={"dataset": "ade20k"}, log=lambda line: None)
    rows = [row.split(",")[:4] for row in (built / "errors.csv").read_text().splitlines()[1:]]
    reason = "image without a label map"
    assert rows[:3] == [["train", "", "x.jpg", reason], ["train", "", "y.jpg", reason], ["train", "", "", reason]]
    assert f",{reason},1 more\n" in (built / "errors.csv").read_text()
