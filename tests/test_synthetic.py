"""The drawings: a sound catalogue, pictures that agree with their masks, and scenes that keep to the rules."""

import colorsys
import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipelines.masks import part_masks
from data_pipelines.synthetic.instances import HELD_OUT, encode_masks, generator, make_instance, save_picture
from data_pipelines.synthetic.objects import INSTANCE_GRAPH, OBJECTS, PART_COLOURS, PART_GRAPH, PARTS
from data_pipelines.synthetic.render import render
from data_pipelines.synthetic.scenes import Difficulty, choose_parts, hsv, sample_scene

EASY = Difficulty()
COUNT = 60


@pytest.fixture(scope="module")
def examples():
    return [make_instance(0, "train", index, 128, EASY) for index in range(COUNT)]


def test_catalogue_is_large_enough_and_parts_are_shared():
    assert len(OBJECTS) >= 12
    assert len(PARTS) >= 30
    assert len(INSTANCE_GRAPH) == 5
    assert sorted(itertools.chain(*INSTANCE_GRAPH.values())) == sorted(PART_GRAPH)
    assert set(itertools.chain(*PART_GRAPH.values())) == set(PARTS)
    shared = [part for part in PARTS if sum(part in parts for parts in PART_GRAPH.values()) > 1]
    assert len(shared) >= 12


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.name)
def test_object_draws_exactly_its_parts(kind):
    for seed in range(5):
        pieces = kind.draw(np.random.default_rng(seed).uniform)
        assert {p.part for p in pieces if p.part} == set(kind.parts)
        assert all(np.isfinite(p.points).all() and len(p.points) >= 3 for p in pieces)
    assert len(set(kind.parts)) == len(kind.always + kind.core + kind.optional)
    assert set(kind.held_out or ()) <= set(kind.optional)
    assert {name for pair in kind.needs for name in pair} <= set(kind.parts)


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.name)
def test_parts_of_an_object_have_clearly_different_colours(kind):
    colours = {part: np.array(hsv(*PART_COLOURS[part]), float) for part in kind.parts}
    for a, b in itertools.combinations(kind.parts, 2):
        assert np.linalg.norm(colours[a] - colours[b]) > 55, (a, b)


def test_hsv_is_the_usual_one():
    assert [hsv(0, 1, 1), hsv(120, 1, 0.5), hsv(-120, 1, 1), hsv(50, 0, 2)] == [
        (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip


def test_pictures_vary_in_size_and_are_deterministic(examples):
    sizes = {picture.shape[:2] for _, picture, _ in examples}
    assert {(128, 128), (96, 128)} <= sizes <= {(128, 128), (96, 128), (128, 96), (112, 128)}
    assert [label for label, _, _ in examples[:15]] == [kind.name for kind in OBJECTS]
    again = make_instance(0, "train", 7, 128, EASY)
    assert np.array_equal(again[1], examples[7][1])
    assert encode_masks(again[2]) == encode_masks(examples[7][2])
    assert not np.array_equal(make_instance(1, "train", 7, 128, EASY)[1][:96, :96], again[1][:96, :96])
    assert not np.array_equal(make_instance(0, "val", 7, 128, EASY)[1][:96, :96], again[1][:96, :96])


def test_masks_are_disjoint_large_enough_and_of_the_object(examples):
    for label, picture, masks in examples:
        assert len(masks) >= 2
        assert set(masks) <= set(PART_GRAPH[label])
        entries = np.stack([mask for part in masks.values() for mask in part])
        assert entries.shape[1:] == picture.shape[:2]
        assert entries.dtype == np.uint8
        assert entries.sum(0).max() == 1
        for part in masks.values():
            assert sum(mask.sum() for mask in part) >= 0.006 * picture.shape[0] * picture.shape[1]


def test_pieces_of_a_part_are_separate_masks(examples):
    wheels = [masks["wheel"] for label, _, masks in examples if label == "truck" and "wheel" in masks]
    assert wheels
    assert all(len(entries) >= 2 for entries in wheels)


def test_masks_show_the_colour_of_the_part(examples):
    """Pixel by pixel most of a mask has the hue of its part: picture and masks lie on top of each other."""
    for _, picture, masks in examples:
        for part, entries in masks.items():
            inside = picture[np.any(entries, 0)].astype(float)
            mean, want = inside.mean(0), np.array(hsv(*PART_COLOURS[part]), float)
            cosine = mean @ want / np.linalg.norm(mean) / np.linalg.norm(want)
            assert cosine > 0.93, part


def test_occluder_and_later_parts_are_cut_out_of_masks():
    scene = sample_scene(0, "train", generator(0, "train", 0), 128, dataclasses.replace(EASY, occluder=1.0))
    _, masks = render(scene)
    _, without = render(dataclasses.replace(scene, layers=scene.layers[:-1]))
    total = sum(mask.sum() for entries in masks.values() for mask in entries)
    assert total < sum(mask.sum() for entries in without.values() for mask in entries)
    alone = [layer for layer in scene.layers if layer.part == "body"]
    _, body = render(dataclasses.replace(scene, layers=tuple(alone)))
    assert sum(m.sum() for m in body["body"]) > sum(m.sum() for m in masks["body"])


def test_several_instances_share_the_part_masks():
    scene_rng = generator(0, "train", 0)
    scene = sample_scene(1, "train", scene_rng, 128, dataclasses.replace(EASY, several=1.0, core_missing=0.0))
    _, masks = render(scene)
    assert len(masks["wheel"]) == 6
    assert len(masks["cab"]) == 2


def test_absent_parts_and_shares():
    kind = next(k for k in OBJECTS if k.name == "airplane")
    chosen = [choose_parts(kind, "train", np.random.default_rng(seed), EASY) for seed in range(2000)]
    share = {part: np.mean([part in parts for parts in chosen]) for part in kind.parts}
    assert share["fuselage"] == 1.0
    assert share["wing"] == pytest.approx(0.93, abs=0.03)
    assert share["window"] == pytest.approx(0.5, abs=0.05)
    assert all("wing" in parts for parts in chosen if "engine" in parts)


def test_held_out_pairs_occur_in_their_split_only(examples):
    assert len(HELD_OUT) >= 4
    for label, _, masks in examples + [make_instance(0, s, i, 128, EASY) for s in ("val", "test") for i in range(15)]:
        assert not set(HELD_OUT.get(label, ("no part",))) <= set(masks)
    for index in range(2 * len(HELD_OUT)):
        label, _, masks = make_instance(0, "heldout", index, 128, EASY)
        assert set(HELD_OUT[label]) <= set(masks)


def test_backgrounds_of_the_splits_differ():
    for split, (middle, reach) in {"train": (30, 30), "val": (75, 15), "test": (105, 15)}.items():
        for seed in range(40):
            top = sample_scene(0, split, np.random.default_rng(seed), 128, EASY).background[0]
            if max(top) - min(top) > 12:  # else 8 bits are too few to tell the hue
                hue = 360 * colorsys.rgb_to_hsv(*top)[0]
                assert abs((hue - middle + 60) % 120 - 60) < reach + 5


def test_files_show_the_picture_again(tmp_path, examples):
    """JPEG is close, PNG exact, and turned files come back upright through their EXIF tag."""
    kinds = set()
    for seed in range(90):
        picture = examples[seed % COUNT][1]
        path = save_picture(picture, tmp_path / str(seed), np.random.default_rng(seed))
        with Image.open(path) as image:
            orientation = image.getexif().get(0x0112, 1)
            upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        kinds.add((path.suffix, orientation))
        assert upright.shape == picture.shape
        difference = np.abs(upright.astype(int) - picture)
        assert difference.max() == 0 if path.suffix == ".png" else difference.mean() < 3
    assert {(".jpg", 1), (".png", 1)} <= kinds
    assert any(orientation in (6, 8) for _, orientation in kinds)


def test_encoded_masks_decode_to_themselves(examples):
    for _, picture, masks in examples[:10]:
        decoded = part_masks(json.loads(encode_masks(masks)), picture.shape[:2])
        assert sorted(decoded) == sorted(masks)
        for part, mask in decoded.items():
            assert np.array_equal(mask, np.any(masks[part], 0))


def test_rules_that_no_scene_can_keep_are_an_error(monkeypatch):
    monkeypatch.setattr("data_pipelines.synthetic.instances.ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match="90.0%"):
        make_instance(0, "train", 0, 64, dataclasses.replace(EASY, smallest_part=0.9))
