import json
import pickle

import numpy as np
import pytest
from fixtures_folders import blocks, check_sample, same, write_image, write_json, write_labels
from PIL import Image

from data_pipelines.semantic import SOURCES, LabelMapSource, pixel_names
from plum_jax.errors import UserError


def ade20k(root, maps, split="training"):
    """{stem: uint8[H, W]} as an ADE20K folder."""
    for number, (stem, labels) in enumerate(maps.items()):
        write_image(root / f"ade20k/images/{split}/{stem}.jpg", seed=number)
        write_labels(root / f"ade20k/annotations/{split}/{stem}.png", labels)
    return root


def cocostuff(root, labels):
    write_image(root / "coco/train2017/000000000009.jpg")
    write_labels(root / "cocostuff/train2017/000000000009.png", labels)
    return root


def mapillary(root, labels, config=None):
    write_image(root / "mapillary/training/images/aB3_-x.jpg")
    write_labels(root / "mapillary/training/v2.0/labels/aB3_-x.png", labels, palette=True)
    names = ("Bird", "Traffic Sign (Back)", "Lane Marking - General", "Car", "Ground", "Unlabeled")
    entries = [{"name": f"x--{n}", "readable": n, "evaluate": n != "Ground", "color": [0, 0, 0]} for n in names]
    write_json(root / "mapillary/config_v2.0.json", {"version": "2.0", "labels": entries} if config is None else config)
    return root


def sample(source, index=0, seed=0):
    return source.sample(index, np.random.default_rng(seed))


def test_ade20k_labels_are_shifted_and_zero_is_none(tmp_path):
    labels = blocks(0, 1, 3, 150)  # none, wall, sky, flag
    source = LabelMapSource(ade20k(tmp_path, {"ADE_train_00000001": labels}), dataset="ade20k", per_image=5)
    assert (source.family, source.dataset, source.grounded, len(source), source.listed) == ("semantic", "ade20k", True, 1, 1)
    found = sample(source)
    named = check_sample(found)
    assert set(named) == {"wall", "sky", "flag"}
    for name, value in (("wall", 1), ("sky", 3), ("flag", 150)):
        np.testing.assert_array_equal(named[name], labels == value)
    assert found.key == "ADE_train_00000001.jpg"
    assert found.image == str(tmp_path / "ade20k/images/training/ADE_train_00000001.jpg")


def test_cocostuff_leaves_out_names_with_a_hyphen_and_255(tmp_path):
    names = pixel_names(tmp_path, "cocostuff")
    assert (names[0], names[94], names[95], names[181]) == ("person", "bridge", None, "wood")  # 95 is building-other
    assert sum(name is None for name in names) == 28
    source = LabelMapSource(cocostuff(tmp_path, blocks(0, 95, 181, 255)), dataset="cocostuff", per_image=9)
    named = check_sample(sample(source))
    assert set(named) == {"person", "wood"}
    np.testing.assert_array_equal(named["wood"], blocks(0, 0, 1, 0))


def test_mapillary_reads_indices_of_a_palette_image(tmp_path):
    labels = blocks(1, 2, 3, 4, 5, 255)
    mapillary(tmp_path, labels)
    assert Image.open(tmp_path / "mapillary/training/v2.0/labels/aB3_-x.png").mode == "P"
    source = LabelMapSource(tmp_path, dataset="mapillary", per_image=9)
    named = check_sample(sample(source))
    assert set(named) == {"traffic sign (back)", "lane marking - general", "car"}
    np.testing.assert_array_equal(named["car"], labels == 3)
    faithful = LabelMapSource(tmp_path, dataset="mapillary", per_image=9, ask_void=True)
    assert set(check_sample(sample(faithful))) - set(named) == {"ground", "unlabeled"}


def test_pixel_values_of_one_name_are_united(tmp_path):
    config = {"labels": [{"readable": "Car"}, {"readable": " CAR "}, {"readable": "Bus"}]}
    source = LabelMapSource(mapillary(tmp_path, blocks(0, 1, 2), config), dataset="mapillary")
    named = check_sample(sample(source))
    np.testing.assert_array_equal(named["car"], blocks(1, 1, 0))
    np.testing.assert_array_equal(named["bus"], blocks(0, 0, 1))


def test_several_classes_share_a_sample_and_vary_with_the_draw(tmp_path):
    source = LabelMapSource(ade20k(tmp_path, {"a": blocks(1, 2, 3, 4, 5, 6)}), dataset="ade20k", per_image=2)
    drawn = [sample(source, seed=seed) for seed in range(20)]
    assert all(len(s.dialogues) == len(s.masks) == 2 for s in drawn)
    assert all(len(check_sample(s)) == 2 for s in drawn)  # without replacement
    assert len({name for s in drawn for name in check_sample(s)}) == 6
    assert len({s.dialogues[0].turns[0][0].split("\n")[1][:12] for s in drawn}) > 3


def test_the_same_draw_whatever_the_order_and_after_pickling(tmp_path):
    ade20k(tmp_path, {stem: blocks(1, 2, 3, 4) for stem in ("b", "a", "c")})
    source = LabelMapSource(tmp_path, dataset="ade20k", per_image=2)
    assert [sample(source, i).key for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    again = pickle.loads(pickle.dumps(LabelMapSource(tmp_path, dataset="ade20k", per_image=2)))
    sample(again, 2, seed=9)
    assert all(same(sample(source, i, seed=5), sample(again, i, seed=5)) for i in (2, 0, 1))
    assert not same(sample(source, 0, seed=5), sample(source, 0, seed=6))


def test_validation_split_and_registry(tmp_path):
    ade20k(tmp_path, {"v": blocks(1, 2)}, split="validation")
    source = SOURCES["ade20k"](tmp_path, split="val", per_image=1)
    assert sample(source).key == "v.jpg"
    assert set(SOURCES) == {"ade20k", "cocostuff", "mapillary"}


def test_images_and_label_maps_without_each_other_are_counted(tmp_path):
    ade20k(tmp_path, {"a": blocks(1, 2), "b": blocks(1, 2), "c": blocks(1, 2)})
    (tmp_path / "ade20k/images/training/a.jpg").unlink()
    (tmp_path / "ade20k/annotations/training/c.png").unlink()
    source = LabelMapSource(tmp_path, dataset="ade20k")
    assert (len(source), source.listed) == (1, 2)
    assert source.skipped == {"image file missing": 1, "image without a label map": 1}
    named = {(key, reason) for key, reason, _ in source.faults}
    assert named == {("a.png", "image file missing"), ("c.jpg", "image without a label map")}
    assert all(str(tmp_path) in message for _, _, message in source.faults)
    assert not LabelMapSource(ade20k(tmp_path / "whole", {"a": blocks(1, 2)}), dataset="ade20k").skipped


@pytest.mark.parametrize(
    ("labels", "match"),
    [(blocks(0, 0), "no class to ask for"), (blocks(1, 151), "pixel value 151 has no class"), (blocks(255, 0), "no class")],
)
def test_label_maps_that_say_nothing_are_errors_with_their_name(tmp_path, labels, match):
    source = LabelMapSource(ade20k(tmp_path, {"a": labels}), dataset="ade20k")
    with pytest.raises(UserError, match=rf"annotations/training/a\.png: .*{match}"):
        sample(source)


def test_broken_and_coloured_label_maps(tmp_path):
    ade20k(tmp_path, {"a": blocks(1, 2), "b": blocks(1, 2), "c": blocks(1, 2)})
    source = LabelMapSource(tmp_path, dataset="ade20k")
    folder = tmp_path / "ade20k/annotations/training"
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    write_image(folder / "b.png")
    (folder / "c.png").unlink()
    for index, match in ((0, "not a readable label map"), (1, "mode RGB"), (2, "no such label map")):
        with pytest.raises(UserError, match=match):
            sample(source, index)


def test_wrong_arguments_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="no label maps that are known; use ade20k"):
        LabelMapSource(tmp_path, dataset="cityscapes")
    with pytest.raises(UserError, match="no split 'test'; use train or val"):
        LabelMapSource(tmp_path, dataset="ade20k", split="test")
    with pytest.raises(UserError, match=r"ade20k/images/training: no such folder; .*docs/data/ade20k\.md"):
        LabelMapSource(tmp_path, dataset="ade20k")
    ade20k(tmp_path, {"a": blocks(1, 2)})
    (tmp_path / "ade20k/images/training/a.jpg").rename(tmp_path / "ade20k/images/training/z.jpg")
    with pytest.raises(UserError, match=r"holds no \.jpg with a \.png of its name"):
        LabelMapSource(tmp_path, dataset="ade20k")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ([], "has no list of labels"),
        ({"labels": []}, "has no list of labels"),
        ({"labels": [{"readable": "Car"}] * 256}, "has no list of labels"),
        ({"labels": [{"readable": "Car"}, {"name": "x"}]}, "label 1 has no readable name"),
        ({"labels": [{"readable": "  "}]}, "label 0 has no readable name"),
        ({"labels": [{"readable": "a</s>"}]}, "label 0 has no readable name"),
        ({"labels": ["Car"]}, "label 0 has no readable name"),
    ],
)
def test_a_wrong_mapillary_config(tmp_path, config, match):
    with pytest.raises(UserError, match=rf"config_v2\.0\.json: {match}"):
        LabelMapSource(mapillary(tmp_path, blocks(0, 1), config), dataset="mapillary")


def test_a_mapillary_config_that_is_missing_or_no_json(tmp_path):
    mapillary(tmp_path, blocks(0, 1))
    path = tmp_path / "mapillary/config_v2.0.json"
    path.write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match="not readable as JSON"):
        LabelMapSource(tmp_path, dataset="mapillary")
    path.unlink()
    with pytest.raises(UserError, match="no such file; it is in the root of the release"):
        LabelMapSource(tmp_path, dataset="mapillary")
