import pickle

import numpy as np
import pytest
from fixtures_folders import HW, box, box_mask, check_sample, coco, run_lengths, same, write_image, write_json

from data_pipelines.coco_segmentation import rasterise
from data_pipelines.part_annotations import SOURCES, PartAnnotationSource, call, paco_label, partimagenet_label, pascal_label
from plum_jax.errors import UserError

PACO = "vlpart/paco/annotations/paco_lvis_v1_train.json"
PASCAL = "vlpart/pascal_part/train.json"
PASCAL_CATEGORIES = ({"name": "cat:eye"}, {"name": "cat:head"}, {"name": "car:wheel"})


def paco(root, annotations, categories, images=("train2017/000000000009.jpg",)):
    for number, name in enumerate(images):
        write_image(root / "coco" / name, seed=number)
    write_json(root / PACO, coco(images, annotations, categories))
    return root


def pascal(root, annotations, images=("2008_000003.jpg",), categories=PASCAL_CATEGORIES):
    for number, name in enumerate(images):
        write_image(root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages" / name, seed=number)
    write_json(root / PASCAL, coco(images, annotations, categories))
    return root


def partimagenet(root, annotations, categories, split="train", folder="train"):
    write_image(root / f"partimagenet/PartImageNet/images/{folder}/n02_1.JPEG")
    content = coco(["n02_1.JPEG"], annotations, categories)
    write_json(root / f"partimagenet/PartImageNet/annotations/{split}/{split}.json", content)
    return root


def sample(source, index=0, seed=0):
    return source.sample(index, np.random.default_rng(seed))


def names(source, index=0, draws=30):
    """{name: mask} over many draws of one image."""
    return {name: mask for seed in range(draws) for name, mask in check_sample(sample(source, index, seed)).items()}


@pytest.mark.parametrize(
    ("rule", "category", "label"),
    [
        (paco_label, {"name": "trash_can:lid"}, ("trash can", "lid")),
        (paco_label, {"name": "trash_can"}, ("trash can", None)),
        (paco_label, {"name": "mouse_(computer_equipment):left_button"}, ("mouse", "left button")),
        (paco_label, {"name": "bow_(weapon)"}, ("bow", None)),
        (paco_label, {"name": "Dog:Ear_(outer)"}, ("dog", "ear")),
        (paco_label, {"name": "a:b:c"}, None),
        (paco_label, {"name": "dog:"}, None),
        (pascal_label, {"name": "aeroplane:wing"}, ("aeroplane", "wing")),
        (pascal_label, {"name": " Bus : License_plate "}, ("bus", "license plate")),
        (pascal_label, {"name": "aeroplane"}, None),
        (pascal_label, {"name": "a:b:c"}, None),
        (partimagenet_label, {"supercategory": "Quadruped", "name": "Quadruped Head"}, ("quadruped", "head")),
        (partimagenet_label, {"supercategory": "Car", "name": "Car Side Mirror"}, ("car", "side mirror")),
        (partimagenet_label, {"supercategory": "Car", "name": "Car Tier"}, ("car", "tire")),
        (partimagenet_label, {"supercategory": "Car", "name": "Carriage"}, ("car", "carriage")),
        (partimagenet_label, {"supercategory": "Bird", "name": "Bird"}, ("bird", None)),
        (partimagenet_label, {"supercategory": "", "name": "Head"}, None),
        (paco_label, {"name": "<image>:lid"}, None),
    ],
)
def test_label_rules(rule, category, label):
    assert rule(category) == label


def test_names_of_parts_are_grammatical():
    rng = np.random.default_rng(0)
    said = [call(("cat", "eye"), rng) for _ in range(200)]
    assert set(said) == {"cat eye", "eye of the cat"}
    assert 70 < said.count("cat eye") < 130
    assert call(("cat", None), rng) == "cat"


def test_paco_has_objects_and_parts(tmp_path):
    categories = ({"name": "trash_can"}, {"name": "trash_can:lid"}, {"name": "dog_(animal)"})
    annotations = [(1, 1, [box(0, 0, 20, 30)]), (1, 2, [box(0, 0, 20, 5)]), (1, 3, run_lengths(box_mask((30, 5, 50, 35))))]
    source = PartAnnotationSource(paco(tmp_path, annotations, categories), dataset="paco_lvis", per_image=5)
    assert (source.family, source.dataset, source.grounded, len(source), source.listed) == ("semantic", "paco_lvis", True, 1, 1)
    found = sample(source)
    assert found.key == "train2017/000000000009.jpg"
    assert found.image == str(tmp_path / "coco/train2017/000000000009.jpg")
    assert len(found.dialogues) == 3
    named = names(source)
    assert set(named) == {"trash can", "dog", "trash can lid", "lid of the trash can"}
    np.testing.assert_array_equal(named["trash can lid"], box_mask((0, 0, 20, 5)))
    np.testing.assert_array_equal(named["lid of the trash can"], box_mask((0, 0, 20, 5)))
    np.testing.assert_array_equal(named["dog"], box_mask((30, 5, 50, 35)))
    assert not any("the the" in text for seed in range(40) for d in sample(source, seed=seed).dialogues for text in d.turns[0])


def test_annotations_of_one_name_are_united_and_asked_once(tmp_path):  # D22
    annotations = [(1, 1, [box(0, 0, 5, 5)]), (1, 2, [box(0, 0, 30, 30)]), (1, 1, [box(10, 0, 15, 5)])]
    source = PartAnnotationSource(pascal(tmp_path, annotations), dataset="pascal_part", per_image=5)
    for seed in range(20):
        found = sample(source, seed=seed)
        assert len(found.dialogues) == len(found.masks) == 2
    np.testing.assert_array_equal(names(source)["cat eye"], box_mask((0, 0, 5, 5), (10, 0, 15, 5)))


def test_two_categories_of_one_label_are_one(tmp_path):
    annotations = [(1, 1, [box(0, 0, 5, 5)]), (1, 2, [box(10, 0, 15, 5)])]
    categories = ({"name": "mouse_(animal):ear"}, {"name": "Mouse_(pet):ear"})
    source = PartAnnotationSource(paco(tmp_path, annotations, categories), dataset="paco_lvis")
    assert len(sample(source).dialogues) == 1
    np.testing.assert_array_equal(names(source)["mouse ear"], box_mask((0, 0, 5, 5), (10, 0, 15, 5)))


def test_short_polygons_keep_their_annotation(tmp_path):  # D17
    slanted = [10.0, 2.0, 30.0, 12.0, 20.0, 32.0, 0.0, 22.0]
    annotations = [(1, 1, [slanted]), (1, 2, [[0.0, 0.0, 20.0, 0.0, 0.0, 20.0]])]
    source = PartAnnotationSource(pascal(tmp_path, annotations), dataset="pascal_part")
    assert not source.skipped
    named = names(source)
    np.testing.assert_array_equal(named["cat eye"], rasterise(np.reshape(slanted, (-1, 2)), HW))
    assert named["cat head"].sum() == 190


def test_what_is_left_out_is_counted(tmp_path):
    images = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    annotations = [
        (1, 1, [box(0, 0, 5, 5)]),
        (1, 2, [box(0, 0, 9, 9)], {"iscrowd": 1}),
        (1, 9, [box(0, 0, 5, 5)]),
        (1, 2, []),
        (1, 2, [[1.0, 2.0, 3.0, 4.0]]),
        (2, 1, [box(0, 0, 5, 5)]),
        (3, 2, [box(0, 0, 9, 9)], {"iscrowd": 1}),
        (7, 1, [box(0, 0, 5, 5)]),
    ]
    pascal(tmp_path, annotations, images)
    (tmp_path / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/b.jpg").unlink()
    source = PartAnnotationSource(tmp_path, dataset="pascal_part")
    assert (len(source), source.listed) == (1, 4)
    assert source.skipped == {
        "image file missing": 1,
        "image without an annotation": 2,
        "crowd annotation": 2,
        "annotation without a known label": 1,
        "annotation without a usable mask": 2,
    }
    assert {(key, reason) for key, reason, _ in source.faults} == {
        ("b.jpg", "image file missing"),
        ("c.jpg", "image without an annotation"),
        ("d.jpg", "image without an annotation"),
        ("a.jpg: annotation 2", "crowd annotation"),
        ("c.jpg: annotation 7", "crowd annotation"),
        ("a.jpg: annotation 3", "annotation without a known label"),
        ("a.jpg: annotation 4", "annotation without a usable mask"),
        ("a.jpg: annotation 5", "annotation without a usable mask"),
    }
    assert set(names(source)) == {"cat eye", "eye of the cat"}


def test_a_ring_too_thin_for_a_pixel_is_not_asked_for(tmp_path):
    annotations = [(1, 1, [box(3.0, 3.0, 3.2, 20.0)]), (1, 2, [box(0, 0, 9, 9)]), (2, 1, [box(3.0, 3.0, 3.2, 20.0)])]
    source = PartAnnotationSource(pascal(tmp_path, annotations, ("a.jpg", "b.jpg")), dataset="pascal_part", per_image=1)
    assert set(names(source)) == {"cat head", "head of the cat"}
    with pytest.raises(UserError, match=r"train\.json: no annotation of b\.jpg covers a pixel"):
        sample(source, 1)


def test_broken_run_lengths_are_an_error_with_the_name_of_the_file(tmp_path):
    source = PartAnnotationSource(pascal(tmp_path, [(1, 1, {"size": list(HW), "counts": "zzz"})]), dataset="pascal_part")
    with pytest.raises(UserError, match=r"train\.json: an annotation of 2008_000003\.jpg: counts is"):
        sample(source)


def test_partimagenet_with_its_supercategories(tmp_path):
    categories = ({"supercategory": "Car", "name": "Car Tier"}, {"supercategory": "Car", "name": "Car Side Mirror"})
    annotations = [(1, 1, [box(0, 20, 10, 30)]), (1, 1, [box(30, 20, 40, 30)]), (1, 2, [box(20, 5, 24, 9)])]
    source = PartAnnotationSource(partimagenet(tmp_path, annotations, categories), dataset="partimagenet")
    assert source.labels == [("car", "side mirror"), ("car", "tire")]
    named = names(source)
    assert set(named) == {"car tire", "tire of the car", "car side mirror", "side mirror of the car"}
    np.testing.assert_array_equal(named["tire of the car"], box_mask((0, 20, 10, 30), (30, 20, 40, 30)))


def test_partimagenet_whole_objects_and_another_folder_of_images(tmp_path):
    categories = ({"supercategory": "Car", "name": "Car"},)
    partimagenet(tmp_path, [(1, 1, [box(0, 0, 30, 30)])], categories, split="val_whole", folder="val")
    source = PartAnnotationSource(tmp_path, dataset="partimagenet", split="val_whole")
    assert set(names(source)) == {"car"}
    write_image(tmp_path / "partimagenet/PartImageNet/images/val_whole/n02_1.JPEG")
    assert "images/val_whole/" in sample(PartAnnotationSource(tmp_path, dataset="partimagenet", split="val_whole")).image
    moved = tmp_path / "elsewhere"
    (tmp_path / "partimagenet/PartImageNet/images/val").rename(moved)
    source = PartAnnotationSource(tmp_path, dataset="partimagenet", split="val_whole", images=moved)
    assert sample(source).image == str(moved / "n02_1.JPEG")


def test_order_draws_and_pickling_are_deterministic(tmp_path):
    images = ("c.jpg", "a.jpg", "b.jpg")
    annotations = [(i, c, [box(c, i, 10 + 9 * c, 20)]) for i in (1, 2, 3) for c in (3, 1, 2)]
    source = PartAnnotationSource(pascal(tmp_path, annotations, images), dataset="pascal_part", per_image=2)
    assert [sample(source, i).key for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    again = pickle.loads(pickle.dumps(SOURCES["pascal_part"](tmp_path, per_image=2)))
    assert all(same(sample(source, i, 3), sample(again, i, 3)) for i in (2, 0, 1))
    assert not same(sample(source, 0, 3), sample(source, 0, 4))
    drawn = {frozenset(check_sample(sample(source, 0, seed))) for seed in range(30)}
    assert len(drawn) > 6  # pairs of three labels, each with two ways to say it


def test_wrong_arguments_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="no part annotations that are known; use paco_lvis, pascal_part, partimagenet"):
        PartAnnotationSource(tmp_path, dataset="ade20k")
    with pytest.raises(UserError, match="no split 'dev'; use train, val, test"):
        PartAnnotationSource(tmp_path, dataset="paco_lvis", split="dev")
    with pytest.raises(UserError, match=r"paco_lvis_v1_train\.json: no such file; .*docs/data/paco_lvis\.md"):
        PartAnnotationSource(tmp_path, dataset="paco_lvis")
    write_json(tmp_path / PACO, coco(["a.jpg"], [], []))
    with pytest.raises(UserError, match=r"/coco: no such folder; .*docs/data/paco_lvis\.md"):
        PartAnnotationSource(tmp_path, dataset="paco_lvis")
    (tmp_path / "coco").mkdir()
    with pytest.raises(UserError, match=r"no image in .*/coco with an annotation \(left out: 1 image file missing\)"):
        PartAnnotationSource(tmp_path, dataset="paco_lvis")


@pytest.mark.parametrize(
    "content", [[], {"images": []}, {"images": [], "annotations": {}, "categories": []}, {"images": [1], "annotations": []}]
)
def test_a_file_that_is_no_coco_file(tmp_path, content):
    write_json(tmp_path / PASCAL, content)
    with pytest.raises(UserError, match=r"train\.json: has no list '(images|annotations|categories)' of objects"):
        PartAnnotationSource(tmp_path, dataset="pascal_part")


def test_hostile_entries_are_counted_not_followed(tmp_path):
    pascal(tmp_path, [])
    content = coco(["2008_000003.jpg"], [(1, 1, [box(0, 0, 5, 5)])], PASCAL_CATEGORIES)
    odd = [{"id": 2, "file_name": "../../secret.jpg", "height": 4, "width": 4}, {"id": [3], "file_name": "a.jpg"}, {}]
    content["images"] += [*odd, {"id": 5, "file_name": "2008_000003.jpg", "height": "40", "width": 60}]
    content["annotations"] += [{}, {"image_id": [1]}, {"image_id": 1, "category_id": {}}, {"image_id": 1, "category_id": 1}]
    content["categories"] += [{}, {"id": 8, "name": 5}, {"id": [9], "name": "cat:ear"}]
    write_json(tmp_path / PASCAL, content)
    source = PartAnnotationSource(tmp_path, dataset="pascal_part")
    assert len(source) == 1
    assert source.skipped["image entry without an id, a file name or a size"] == 4
    assert source.skipped["annotation without a known label"] == 1
    assert source.skipped["annotation without a usable mask"] == 1
