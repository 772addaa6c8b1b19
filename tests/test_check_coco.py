"""plum data check, stats and show on COCO files of parts."""

import json

import numpy as np
import pytest
from fixtures_folders import HW, box, box_mask, coco, run_lengths, write_image, write_json
from PIL import Image

from data_pipelines.check import check_target, main
from data_pipelines.checks.options import Options
from data_pipelines.checks.targets import find_target
from data_pipelines.show import main as show
from data_pipelines.stats import describe
from data_pipelines.stats import main as stats
from plum_jax.errors import UserError

CATEGORIES = [{"name": "airplane"}, {"name": "airplane:wing"}, {"name": "airplane:tail"}]


def content():
    """Two images; of a plane, its wing in two rings and its tail in run lengths."""
    mask = run_lengths(box_mask((30, 5, 40, 20)))
    annotations = [
        (1, 1, [box(5, 5, 50, 30)]), (1, 2, [box(5, 5, 15, 15), box(20, 5, 30, 15)]), (1, 3, mask),
        (2, 1, [box(5, 5, 50, 30)]), (2, 2, [box(5, 5, 15, 15)]),
    ]  # fmt: skip
    return coco(["a/0001.jpg", "0002.jpg"], annotations, CATEGORIES)


@pytest.fixture
def place(tmp_path):
    write_image(tmp_path / "images/a/0001.jpg", seed=1)
    write_image(tmp_path / "images/0002.jpg", seed=2)
    write_json(tmp_path / "train.json", content())
    return tmp_path


def report_of(place, changed=None, **options):
    if changed is not None:
        write_json(place / "train.json", changed)
    return check_target(find_target([place / "train.json"]), Options(), images=place / "images", **options)


def texts(found):
    return [f"{f['entry']}: {f['problem']}" for f in found]


def test_a_good_file(place, capsys):
    assert main([str(place / "train.json"), "--images", str(place / "images")]) == 0
    text = capsys.readouterr().out
    assert "train.json: 2 images, 5 annotations, 5 masks, 0 empty masks, 0 dropped polygons, 1 objects, 2 parts" in text
    assert "images: 2 named, 0 missing, 2 read, 0 unreadable, 0 turned by exif" in text
    assert "no problems" in text


def test_without_the_folder_of_images_the_masks_are_checked(place):
    assert main([str(place / "train.json")]) == 0
    report = check_target(find_target([place / "train.json"]), Options())
    assert "give their folder with --images" in report["warnings"][0]["problem"]


def test_every_fault_is_listed_with_its_entry(place):
    bad = content()
    bad["categories"] += [{"id": 4, "name": "wing"}, {"id": 5}, {"id": 6, "name": "Airplane:Wing"}]
    bad["images"] += [
        {"id": 3, "file_name": "lost.jpg", "height": 4, "width": 4},
        {"id": 4, "file_name": "../x.jpg", "height": 4, "width": 4},
        {"id": 5, "file_name": "b.jpg"},
        {"file_name": "c.jpg", "height": 4, "width": 4},
    ]
    good = {"image_id": 1, "category_id": 2, "iscrowd": 0}
    bad["annotations"] += [
        {**good, "id": 4411, "segmentation": [[1, 1, 9, 9], box(1, 1, 9, 9)]},
        {**good, "id": 4412, "segmentation": [[1, 1, 9, 9]]},
        {**good, "id": 4413, "segmentation": [[1, 1, 9, float("nan"), 3, 4]]},
        {**good, "id": 4414, "segmentation": {"size": list(HW), "counts": [1, 2]}},
        {**good, "id": 4415, "segmentation": {"size": [3, 3], "counts": [9]}},
        {**good, "id": 4416, "segmentation": [box(100, 100, 120, 120)]},
        {**good, "id": 4417, "segmentation": None},
        {**good, "id": 4418, "category_id": 99, "segmentation": []},
        {**good, "id": 4419, "image_id": 99, "segmentation": []},
        {**good, "id": 4420, "category_id": 4, "segmentation": [box(1, 1, 9, 9)]},
        {**good, "id": 4420, "iscrowd": 1, "segmentation": [box(1, 1, 9, 9)]},
        {**good, "id": 4422, "category_id": 1, "segmentation": [box(1, 1, 9, 9)]},
    ]
    write_image(place / "images/0002.jpg", hw=(60, 40))
    report = report_of(place, bad)
    errors, warnings = texts(report["problems"]), texts(report["warnings"])
    for expected in (
        "None: 1 image not found in",
        "image 4: file_name is '../x.jpg'",
        "image 5: is None x None",
        "images: {'file_name': 'c.jpg'",
        "image 2: is 40 x 60 in the file, the upright image 60 x 40",
        "category 5: has no name",
        "annotation 4413: polygon is [1, 1, 9, NaN, 3, 4], not a list",
        "annotation 4414: run lengths cover 3 pixels",
        "annotation 4415: segmentation has size [3, 3], its image [40, 60]",
        "annotation 4417: segmentation is null",
        "annotation 4418: category 99 is not in the file",
        "annotation 4419: image 99 is not in the file",
        "annotation 4420: the id occurs twice",
    ):
        assert any(text.startswith(expected) for text in errors), expected
    assert len(errors) == 13
    for expected in (
        "annotation 4411: polygon has 2 points (dropped)",
        "annotation 4412: polygon has 2 points (dropped)",
        "annotation 4416: polygon leaves the image of 40 x 60",
        "annotation 4416: the mask covers no pixel of the image",
        "None: category 'wing' has no parent object: use --hierarchy parts.yaml or name it 'object:wing'",
        "None: 1 times an image shows several objects of one name, first: a/0001.jpg ('airplane')",
        "annotation 4420: is a crowd annotation",
        "image 3: has no annotation",
        "None: objects 'Airplane' and 'airplane' differ in spelling only",
        "None: parts 'Wing' and 'wing' differ in spelling only",
    ):
        assert any(text.startswith(expected) for text in warnings), expected
    assert len(warnings) == 10


def test_what_no_question_is_made_of_is_a_warning(place):
    """Images without an annotation, crowds, and categories without a parent, whether or not something uses them."""
    more = content()
    more["images"] += [{**more["images"][1], "id": 7, "file_name": "more.jpg"}]
    write_image(place / "images/more.jpg", seed=3)
    more["categories"] += [{"id": 8, "name": "cloud"}]
    crowd = {"id": 50, "image_id": 1, "category_id": 2, "iscrowd": 1, "segmentation": [box(1, 1, 9, 9)]}
    more["annotations"] += [crowd]
    report = report_of(place, more)
    assert not report["problems"]
    assert texts(report["warnings"]) == [
        "None: category 'cloud' has no parent object: use --hierarchy parts.yaml or name it 'object:cloud'; nothing uses it",
        "annotation 50: is a crowd annotation, which stands for no object (left out)",
        "image 7: has no annotation",
    ]
    more["annotations"][-1] = {**crowd, "category_id": 8, "iscrowd": 0}
    assert texts(report_of(place, more)["warnings"])[0].endswith("name it 'object:cloud'; its 1 annotations are left out")


def test_an_image_turned_by_exif(place):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(5).integers(0, 256, (*HW, 3), np.uint8)
    Image.fromarray(pixels).save(place / "images/0002.jpg", exif=exif)
    (text,) = texts(report_of(place)["problems"])
    assert text.startswith("image 2: is 40 x 60 in the file, the upright image 60 x 40; it was annotated before the EXIF")


def test_a_hierarchy_gives_names_a_meaning(place):
    flat = content()
    for category, name in zip(flat["categories"], ("plane", "Wing", "Fin"), strict=True):
        category["name"] = name
    tree = place / "parts.yaml"
    tree.write_text("plane: {Wing: wing}\n")
    report = report_of(place, flat, hierarchy=tree)
    assert texts(report["warnings"]) == ["None: category 'Fin' is not in --hierarchy; its 1 annotations are left out"]
    assert report["files"]["train.json"]["object_part_pairs"] == 1
    tree.write_text("plane: [Rudder]\n")
    report = report_of(place, flat, hierarchy=tree)
    assert any("has no category 'Rudder'" in text for text in texts(report["problems"]))
    tree.write_text("plane: [Wing, Fin]\n")
    arguments = [str(place / "train.json"), "--images", str(place / "images"), "--hierarchy", str(tree)]
    assert main(arguments) == 0


def test_copies_across_splits(place, capsys):
    write_image(place / "images/other.jpg", seed=9)
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    waves = 128 + 60 * np.sin(rows / 7)[..., None] + 60 * np.cos(columns / 5 + rows / 9)[..., None]
    Image.fromarray(np.repeat(waves, 3, axis=2).astype(np.uint8)).save(place / "images/a/0001.jpg", quality=95)
    whole = (place / "images/0002.jpg").read_bytes()
    (place / "images/copy.jpg").write_bytes(whole)
    Image.open(place / "images/a/0001.jpg").save(place / "images/again.jpg", quality=60)
    write_json(place / "val.json", coco(["other.jpg", "copy.jpg", "again.jpg", "0002.jpg"], [], CATEGORIES))
    paths = [str(place / "train.json"), str(place / "val.json")]
    assert main([*paths, "--images", str(place / "images"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [f"{f['file']} {f['entry']}: {f['problem']}" for f in report["problems"]] == [
        "val.json image 4: image 0002.jpg is also in train.json; splits must not share images"
    ]
    empty, (same, near) = report["warnings"][:-2], report["warnings"][-2:]
    assert [f"{f['file']} {f['entry']}: {f['problem']}" for f in empty] == [
        f"val.json image {number}: has no annotation" for number in (1, 2, 3, 4)
    ]
    assert same["entry"] == "image 2" and same["problem"].startswith(
        "image copy.jpg is the same file as 0002.jpg of train.json"
    )
    assert near["entry"] == "image 3" and "again.jpg looks the same as a/0001.jpg" in near["problem"]


def test_files_that_are_no_coco(place):
    for text, said in (
        ('{"images": []}', "has no list 'annotations'"),
        ('{"images": [', "byte"),
        ('{"images" 3}', "not followed by :"),
    ):
        (place / "train.json").write_text(text, encoding="utf-8")
        (found,) = report_of(place)["problems"]
        assert said in found["problem"]
    (place / "train.json").write_text('{"images": [], "annotations": [], "categories": [], "images": []}', encoding="utf-8")
    (found,) = report_of(place)["problems"]
    assert "key 'images' stands twice" in found["problem"]


def test_fields_in_any_order(place):
    backwards = dict(reversed(content().items()))
    assert list(backwards)[:2] == ["categories", "annotations"]
    assert report_of(place, backwards)["problems"] == []


def test_stats(place, capsys):
    found = describe(find_target([place / "train.json"]))["files"]["train.json"]
    assert {name: found[name] for name in ("images", "objects", "parts", "object_part_pairs", "masks")} == {
        "images": 2, "objects": 1, "parts": 2, "object_part_pairs": 2, "masks": 5,
    }  # fmt: skip
    assert found["masks_per_image"] == {"mean": 2.5, "median": 2.5, "least": 2.0, "most": 3.0}
    assert found["parts_per_object"] == {"1": 1, "2": 1}
    assert found["together"] == [["tail", "wing", 1]]
    assert found["mask_area"]["most"] == pytest.approx(45 * 25 / 2400)
    assert stats([str(place / "train.json")]) == 0
    assert "parts most often together" in capsys.readouterr().out


def test_gallery(place):
    arguments = [str(place / "train.json"), "--out", str(place / "page.html")]
    with pytest.raises(UserError, match="give the folder of its images with --images"):
        show(arguments)
    assert show([*arguments, "--images", str(place / "images"), "--max", "1"]) == 0
    page = (place / "page.html").read_text(encoding="utf-8")
    assert page.count("<article") == 1 and page.count('class="mask"') in (2, 3)
    assert "airplane:wing" in page
