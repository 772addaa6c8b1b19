import json

import pytest
from fixtures_partonomy import BOXES, box_mask, question, write_entries, write_folder

from data_pipelines.stats import folder_stats, main
from plum_jax import cli
from plum_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, images=4)
    write_folder(tmp_path, images=2, split="val", seed=1)
    return tmp_path


def test_counts_of_splits_and_together(folder):
    report = folder_stats(folder)
    train, val, both = report["splits"]["train"], report["splits"]["val"], report["together"]
    assert (train["images"], val["images"], both["images"]) == (4, 2, 6)
    assert (train["questions"], val["questions"], both["questions"]) == (12, 6, 18)
    assert both["types"] == {"identification_with_label": 6, "part_to_whole": 6, "positive_with_label": 6}
    assert (both["objects"], both["parts"], both["object_part_pairs"]) == (1, 3, 3)
    assert (train["masks"], both["masks"], both["empty_masks"], both["broken_masks"]) == (
        12,
        18,
        0,
        0,
    )  # once per image and part
    assert both["masks_per_image"] == {"mean": 3, "min": 3, "median": 3, "max": 3}
    assert both["parts_per_object"]["mean"] == 3
    assert report["left_out"] == {}


def test_parts_belong_to_objects(folder):
    entries = [question("images/train_0.png", (40, 72)), question("images/train_1.png", (48, 66))]
    entries[1]["image_label"] = "floor lamp"
    del entries[1]["segmentations"]["pole"]
    entries[1]["answer_parts"][0] = ["base", "lamp shade"]
    entries[1]["segmentations"]["lid"] = []  # no mask: not visible
    write_entries(folder, entries)
    train = folder_stats(folder)["splits"]["train"]
    assert (train["objects"], train["parts"], train["object_part_pairs"], train["masks"]) == (2, 3, 5, 5)
    assert train["parts_per_object"] == {"mean": 2.5, "min": 2, "median": 2.5, "max": 3}
    assert train["part_pairs"][0] == {"parts": ["base", "lamp shade"], "objects": 2}
    assert train["part_pairs"][1:] == [{"parts": p, "objects": 1} for p in (["base", "pole"], ["lamp shade", "pole"])]


def test_overlap_of_choices_by_hand(folder):
    write_entries(folder, [question("images/train_0.png", (40, 72), correct=3)])
    overlap = folder_stats(folder)["splits"]["train"]["answer_overlap"]
    # {base, shade, pole} with {base} 1/3, {base, lid} 1/4, {lid, pole} 1/4, {lid} 0
    assert overlap == pytest.approx({"mean": (1 / 3 + 1 / 4 + 1 / 4) / 4, "mean_of_max": 1 / 3, "mean_of_min": 0})


def test_position_of_the_correct_choice(folder):
    train = folder_stats(folder)["splits"]["train"]
    assert train["correct_position"] == [5, 1, 5, 1]  # 4 part_to_whole at 0, 4 positive at 2, identification at 0, 1, 2, 3
    assert train["correct_object_position"] == [0, 4]


def test_areas_of_run_lengths_polygons_and_unions(folder):
    hw = (40, 72)
    entry = question("images/train_0.png", hw)
    half = box_mask(hw, BOXES["base"])
    entry["segmentations"]["base"] *= 2  # the union of a mask with itself
    entry["segmentations"]["dust"] = [{"size": list(hw), "counts": [hw[0] * hw[1]]}]
    entry["segmentations"]["lid"] = [{"size": list(hw), "counts": "zzz"}]
    write_entries(folder, [entry])
    train = folder_stats(folder)["splits"]["train"]
    assert (train["masks"], train["empty_masks"], train["broken_masks"]) == (5, 1, 1)
    bins = {(b["from"], b["to"]): b["masks"] for b in train["mask_area"]}
    shares = [half.mean(), box_mask(hw, BOXES["lamp shade"]).mean(), box_mask(hw, BOXES["pole"]).mean()]
    for share in shares:
        assert any(low < share <= high and count for (low, high), count in bins.items())
    assert sum(bins.values()) == 3


@pytest.mark.parametrize("size", [[0, 0], [3], "wide", None])
def test_a_mask_of_no_size_is_broken(folder, size):
    entry = question("images/train_0.png", (40, 72))
    entry["segmentations"]["base"] = [{"size": size, "counts": "04"}]
    entry["segmentations"]["pole"] = ["text"]
    write_entries(folder, [entry])
    assert folder_stats(folder)["splits"]["train"]["broken_masks"] == 2


def test_json_is_all_of_stdout(folder, capsys):
    assert main([str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["together"]["questions"] == 18
    assert "partonomy_qa_pairs_train.json" in err  # progress


def test_table(folder, capsys):
    assert main([str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "val", "together"] in lines
    assert ["questions", "12", "6", "18"] in lines
    assert ["object-part", "pairs", "3", "3", "3"] in lines
    assert ["mean", "of", "min", "0.000", "0.000", "0.000"] in lines
    assert ["6", "base", "+", "lamp", "shade"] in lines


def test_unreadable_questions_are_left_out_and_said(folder, capsys):
    good = question("images/train_0.png", (40, 72))
    write_entries(folder, [good, {**good, "answer_types": ["correct"] * 5}, 3])
    assert main([str(folder)]) == 0
    assert "partonomy_qa_pairs_train.json: 2 questions cannot be read" in capsys.readouterr().err
    assert folder_stats(folder)["splits"]["train"]["questions"] == 1


def test_a_file_without_split_and_an_empty_one(folder):
    (folder / "partonomy_qa_pairs_val.json").rename(folder / "core_qa_pairs.json")
    write_entries(folder, [], "train")
    report = folder_stats(folder)
    assert report["splits"]["whole"]["questions"] == report["together"]["questions"] == 6
    assert report["splits"]["train"]["masks_per_image"] is None
    assert main([str(folder)]) == 0


def test_wrong_use(tmp_path, capsys):
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="qa_pairs"):
        main([str(tmp_path)])
    write_entries(tmp_path, [])
    assert cli.main(["data", "stats", str(tmp_path)]) == 2
    assert "hold no question" in capsys.readouterr().err
    assert cli.main(["data", "stats"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
