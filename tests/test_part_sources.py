"""Converters: what each source's annotations become, and sentences for files that are none (D 2)."""

import collections
import json

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
    rectangle,
    strips,
    write_core,
    write_own,
    write_paco,
    write_partimagenet,
    write_pascal,
)

from data_pipelines.masks import decode_segmentation
from data_pipelines.partonomy.categories import read_hierarchy
from data_pipelines.partonomy.coco_file import read_coco
from data_pipelines.partonomy.coco_sources import convert_coco
from data_pipelines.partonomy.core_source import convert_core
from data_pipelines.partonomy.sources import convert, gather, image_key, read_excluded, read_names
from plum_jax.errors import UserError

LABELS = {"folding_chair": "chair"}


def contents(descriptor):
    """{(image, label)}: {label: boxes of the masks}."""
    return {
        (one.image_path, one.image_label): {
            label: [box_of(decode_segmentation(entry)) for entry in entries] for label, entries in one.segmentations.items()
        }
        for one in descriptor.instances
    }


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_paco_has_objects_and_names_without_senses(tmp_path):
    path, _ = write_paco(tmp_path)
    descriptor, counts = convert(path, "paco_lvis")
    assert not counts
    assert len(descriptor.instances) == 12
    got = contents(descriptor)
    parts = {f"mug--part:{part}": [box] for part, box in strips(WHOLE, OBJECTS["mug"]).items()}
    assert got["train2017/000000000006.jpg", "object--mug"] == {"object--mug": [WHOLE], **parts}
    assert ("train2017/000000000004.jpg", "object--folding_chair") in got
    assert descriptor.part_graph["object--mug"] == ["mug--part:body", "mug--part:handle", "mug--part:rim"]
    assert descriptor.instance_graph == {"object": sorted(descriptor.part_graph)}
    assert not any(one.highlight_box or one.multi_instance_possible for one in descriptor.instances)


def test_pascal_part_and_partimagenet_say_that_several_objects_are_possible(tmp_path):
    for write, source in ((write_pascal, "pascal_part"), (write_partimagenet, "partimagenet")):
        path, _ = write(tmp_path)
        descriptor, counts = convert(path, source)
        assert not counts
        assert all(one.multi_instance_possible for one in descriptor.instances)
        parts = contents(descriptor)[descriptor.instances[2].image_path, descriptor.instances[2].image_label]
        kind = descriptor.instances[2].image_label.removeprefix("object--")
        names = ["tier" if part == "wheel" and source == "partimagenet" else part for part in OBJECTS[kind]]
        assert parts == {
            f"{kind}--part:{name}": [box] for name, box in zip(names, strips(WHOLE, OBJECTS[kind]).values(), strict=True)
        }


def test_core_keeps_objects_of_one_image_apart_and_has_one_case(tmp_path):
    folder = write_core(tmp_path)
    entry = json.loads(next(iter(sorted((folder / "masks").glob("things--dog--part:head/*.json")))).read_text())
    other = folder / "masks/things--car--part:door/extra.json"
    other.write_text(json.dumps(entry), encoding="utf-8")
    descriptor, counts = convert(folder, "core")
    assert not counts
    got = contents(descriptor)
    image = entry["image_path"].removeprefix("/shared/ann/images/")
    assert set(got) >= {(image, "things--dog"), (image, "things--car")}
    assert set(got[image, "things--car"]) == {"things--car--part:door"}
    assert len(got) == 13
    assert descriptor.instance_graph == {"things": [f"things--{kind}" for kind in OBJECTS]}


def test_core_counts_bad_mask_files_and_missing_images(tmp_path):
    folder = write_core(tmp_path)
    place = folder / "masks/things--dog--part:head"
    good = json.loads(next(iter(sorted(place.glob("*.json")))).read_text())
    for number, text in enumerate(
        ["{", json.dumps({**good, "more": 1}), json.dumps({**good, "image_path": "/x/images/no.jpg"})]
    ):
        (place / f"bad{number}.json").write_text(text, encoding="utf-8")
    _, counts = convert_core(folder)
    assert counts["mask file that is not JSON with size, counts, image_path and is_root_concept"] == 2
    assert counts["mask of an image that is not there"] == 1


def test_any_coco_file_by_hierarchy_or_by_names(tmp_path):
    path, _, hierarchy = write_own(tmp_path)
    descriptor, counts = convert(path, "coco", read_hierarchy(hierarchy))
    assert len(descriptor.instances) == 12
    assert not counts
    names = Coco()
    image = names.image("a.png")
    names.annotate(image, "mug", WHOLE)
    names.annotate(image, "mug:upper rim", LEFT)
    descriptor, _ = convert_coco(names.write(tmp_path / "names.json"), "coco")
    assert contents(descriptor) == {("a.png", "object--mug"): {"object--mug": [WHOLE], "mug--part:upper rim": [LEFT]}}
    assert descriptor.instance_graph == {"mug": ["object--mug"]}


def test_a_part_category_of_several_objects_belongs_to_the_one_it_lies_on(tmp_path):
    coco = Coco()
    image = coco.image("a.png")
    mug = coco.annotate(image, "mug", LEFT)
    coco.annotate(image, "door", RIGHT)
    on_mug, on_door = (x0 + 2 for x0 in (LEFT[0], RIGHT[0]))
    coco.annotate(image, "handle", (on_mug, 10, on_mug + 4, 20))
    coco.annotate(image, "handle", (on_door, 10, on_door + 4, 20))
    coco.annotate(image, "handle", (38, 0, 42, 4))
    assert mug == 1
    descriptor, counts = convert_coco(
        coco.write(tmp_path / "a.json"), "coco", hierarchy={"mug": {"handle": "handle"}, "door": {"handle": "handle"}}
    )
    got = contents(descriptor)
    assert got["a.png", "object--mug"]["mug--part:handle"] == [(6, 10, 10, 20)]
    assert got["a.png", "object--door"]["door--part:handle"] == [(46, 10, 50, 20)]
    assert counts["part of any of several objects that lies on none of them"] == 1


def test_two_kinds_with_two_objects_each_in_one_image_keep_their_objects(tmp_path):
    coco = Coco()
    image = coco.image("a.png")
    for kind, (low, high) in (("dog", (6, 28)), ("mug", (32, 56))):
        for x0, x1 in ((4, 36), (44, 76)):
            coco.annotate(image, kind, (x0, low, x1, high))
            coco.annotate(image, f"{kind}:body", (x0 + 2, low + 2, x1 - 2, high - 2))
        coco.annotate(image, f"{kind}:{'head' if kind == 'dog' else 'rim'}", (46, low + 2, 50, low + 6))
    descriptor, counts = convert_coco(coco.write(tmp_path / "a.json"), "paco_lvis")
    got = contents(descriptor)
    assert got["a.png", "object--dog"] == {
        "object--dog": [(44, 6, 76, 28)], "dog--part:body": [(46, 8, 74, 26)], "dog--part:head": [(46, 8, 50, 12)]
    }  # fmt: skip
    assert got["a.png", "object--mug"]["object--mug"] == [(44, 32, 76, 56)]
    assert [one.highlight_box for one in descriptor.instances] == [(44, 6, 76, 28), (44, 32, 76, 56)]
    assert counts["further object of the same class, not asked about"] == 2


def test_a_second_object_without_parts_or_a_crowd_makes_the_question_ambiguous(tmp_path):
    for crowd in (0, 1):
        coco = Coco()
        image = coco.image("a.png")
        coco.annotate(image, "dog", LEFT)
        coco.annotate(image, "dog:head", (6, 8, 20, 20))
        coco.annotate(image, "dog", RIGHT, iscrowd=crowd)
        descriptor, counts = convert_coco(coco.write(tmp_path / "a.json"), "paco_lvis")
        (one,) = descriptor.instances
        assert one.highlight_box == LEFT
        assert counts["crowd annotation"] == crowd


def test_large_parts_of_several_objects_are_kept(tmp_path):
    hw = (120, 400)
    coco = Coco()
    image = coco.image("a.png", hw)
    for number, x0 in enumerate((0, 200)):
        coco.annotate(image, "dog", (x0, 0, x0 + 190, 120), hw)
        coco.annotate(image, "dog:body", (x0 + 10, 10, x0 + 70, 60), hw)  # 3,000 pixels
        if number:
            coco.annotate(image, "dog:head", (x0 + 100, 10, x0 + 180, 110), hw)
    descriptor, counts = convert_coco(coco.write(tmp_path / "a.json"), "paco_lvis")
    assert contents(descriptor)["a.png", "object--dog"]["dog--part:body"] == [(210, 10, 270, 60)]
    assert not counts["part that lies on no object of its class"]


def test_polygons_of_four_corners_and_of_four_numbers(tmp_path):
    coco = Coco()
    image = coco.image("a.png")
    coco.annotate(image, "dog", WHOLE, segmentation=[rectangle(WHOLE)])
    coco.annotate(
        image, "dog:head", WHOLE, segmentation=[[12, 8, 20, 30], rectangle((20, 10, 30, 20)), rectangle((40, 10, 50, 20))]
    )
    coco.annotate(image, "dog:tail", WHOLE, segmentation=[[12, 8, 20, 30]])
    descriptor, counts = convert_coco(coco.write(tmp_path / "a.json"), "paco_lvis")
    (one,) = descriptor.instances
    (head,) = one.segmentations["dog--part:head"]
    np.testing.assert_array_equal(decode_segmentation(head), box_mask((20, 10, 30, 20)) | box_mask((40, 10, 50, 20)))
    assert "dog--part:tail" not in one.segmentations
    assert counts == {"annotation with an empty mask": 1}


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    coco = Coco()
    image = coco.image("a.png")
    coco.annotate(image, "dog", WHOLE)
    coco.annotate(image, "dog:head", (12, 8, 30, 20))
    coco.annotate(image, "dog:leg", (12, 8, 30, 20), iscrowd=1)
    coco.annotate(image, "dog:leg", (12, 8, 30, 20), segmentation={"size": list(HW), "counts": [5, 5]})
    coco.annotate(image, "dog:leg", (12, 8, 30, 20), segmentation={"size": [3, 3], "counts": [0, 9]})
    coco.annotate(image, "dog:leg", (12, 8, 30, 20), segmentation="none")
    coco.annotate(image, "dog:leg", (12, 8, 30, 20), segmentation=[[1, 2, "x", 4, 5, 6]])
    coco.annotate(image, "dog:leg", (12, 8, 30, 20), segmentation={"size": list(HW), "counts": [HW[0] * HW[1]]})
    coco.annotate(99, "dog:leg", (12, 8, 30, 20))
    descriptor, counts = convert_coco(coco.write(tmp_path / "a.json"), "paco_lvis")
    assert set(descriptor.instances[0].segmentations) == {"object--dog", "dog--part:head"}
    assert counts == {
        "crowd annotation": 1, "annotation with a malformed mask": 4, "annotation with an empty mask": 1,
        "annotation of an unknown image": 1,
    }  # fmt: skip
    assert convert_coco(tmp_path / "a.json", "coco", hierarchy={"dog": {"dog:head": "head"}})[1][
        "annotation of a category that is neither an object with parts nor a part"
    ] == 6  # fmt: skip


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "value, said",
    [
        ("{", "not readable as JSON"),
        ([], "has no lists images, annotations and categories"),
        ({"images": [{}], "annotations": [], "categories": []}, r"images\[0\]: id is None; give a whole number"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": 7}]}, r"categories\[0\]: name is 7; give a text"),
        (
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            "id 1 occurs 2 times",
        ),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 0, "width": 5}], "annotations": [], "categories": []},
            "0 x 5; give the image's height",
        ),
    ],
)
def test_files_that_are_not_coco(tmp_path, value, said):
    with pytest.raises(UserError, match=said):
        read_coco(write(tmp_path / "a.json", value))


@pytest.mark.parametrize(
    "source, name, said",
    [
        ("paco_lvis", "a:b:c", "more than one colon"),
        ("paco_lvis", ":b", "no usable object or part name"),
        ("paco_lvis", "a--b:c", "rename it, without --"),
        ("pascal_part", "dog", "is not object:part"),
        ("partimagenet", "Dog Head", "has no supercategory"),
        ("coco", "dog", "give --hierarchy FILE"),
    ],
)
def test_categories_that_mean_nothing(tmp_path, source, name, said):
    value = {"images": [], "annotations": [], "categories": [{"id": 1, "name": name}]}
    with pytest.raises(UserError, match=said):
        convert_coco(write(tmp_path / "a.json", value), source)


@pytest.mark.parametrize(
    "text, said",
    [
        ("- a", "is not a mapping object"),
        ("dog: head", "'dog' has the parts 'head'"),
        ("dog: []", r"'dog' has the parts \[\]"),
        ("dog: [1]", r"'dog' has the parts \[1\]"),
        ("dog: {head: 3}", "'dog' has the parts"),
        ("dog: [", "not readable as YAML"),
    ],
)
def test_hierarchies_that_are_none(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        read_hierarchy(write(tmp_path / "parts.yaml", text))


def test_hierarchies_that_do_not_fit_the_file(tmp_path):
    coco = Coco()
    for name in ("dog", "head", "ear"):
        coco.category(name)
    path = coco.write(tmp_path / "a.json")
    for hierarchy, said in (
        ({"dog": {"tail": "tail"}}, "has no category 'tail'"),
        ({"dog": {"head": "head"}, "head": {"ear": "ear"}}, "'head' is an object and a part"),
        ({"dog": {"head": "head"}, "cat": {"head": "skull"}}, "category 'head' has the part names head, skull"),
    ):
        with pytest.raises(UserError, match=said):
            convert_coco(path, "coco", hierarchy=hierarchy)


def test_a_file_without_parts_and_wrong_kinds_of_source(tmp_path):
    coco = Coco()
    coco.annotate(coco.image("a.png"), "dog", WHOLE)
    with pytest.raises(UserError, match="holds no part annotation that can be used"):
        convert_coco(coco.write(tmp_path / "a.json"), "paco_lvis")
    with pytest.raises(UserError, match="is a folder; --format paco_lvis reads a JSON file"):
        convert(tmp_path, "paco_lvis")
    with pytest.raises(UserError, match="is a file; --format core reads the folder"):
        convert(tmp_path / "a.json", "core")
    with pytest.raises(UserError, match="no such file; give PARTONOMY-Core's graph.yaml"):
        convert(tmp_path, "core")
    write(tmp_path / "graph.yaml", "component_graph: 3")
    with pytest.raises(UserError, match="has no mapping component_graph"):
        (tmp_path / "masks/a").mkdir(parents=True)
        write(tmp_path / "masks/a/b.json", "{}")
        convert(tmp_path, "core")
    (tmp_path / "graph.yaml").unlink()
    write(tmp_path / "partonomy_qa_pairs.json", "[]")
    with pytest.raises(UserError, match="holds questions already"):
        convert(tmp_path, "core")


def test_official_splits_share_no_coco_image_and_excluded_images_are_gone(tmp_path):
    first, second = (convert(write_paco(tmp_path / str(n), first=n)[0], "paco_lvis")[0] for n in (1, 9))
    excluded = read_excluded(write(tmp_path / "not.txt", "COCO_val2014_000000000002.jpg\n3\n\n"))
    together, split_of, counts = gather({"train": first, "val": second}, {"train": "/a", "val": "/b"}, excluded, {})
    assert counts == {"image of --exclude": 2, "image that an earlier split has": 4}
    assert collections.Counter(split_of.values()) == {"train": 10, "val": 8}
    assert {one.image_path for one in together.instances} == set(split_of)
    assert together.instances[0].image_path == "/a/train2017/000000000001.jpg"
    assert image_key("train2017/000000000139.jpg") == image_key("COCO_train2014_000000000139.jpg") == image_key("139") == 139
    assert image_key("n01440764_1.JPEG") == "n01440764_1.JPEG"


def test_path_map_and_name_files(tmp_path):
    descriptor, _ = convert(write_paco(tmp_path)[0], "paco_lvis")
    together, _, _ = gather({"": descriptor}, {"": "/a"}, set(), {"train2017/": "/new/"})
    assert together.instances[0].image_path == "/new/000000000001.jpg"
    assert read_names(write(tmp_path / "n.json", {"a": "b"})) == {"a": "b"}
    for text in ("[1]", "a: 3", "a: ''"):
        with pytest.raises(UserError, match="is not a mapping label: name"):
            read_names(write(tmp_path / "n.yaml", text))
    with pytest.raises(UserError, match="cannot be read as text"):
        read_excluded(tmp_path / "none.txt")
