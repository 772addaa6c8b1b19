"""Descriptor files, label grammar, cleaning and its merges, splits by photograph."""

import collections
import dataclasses
import json

import pytest

from data_pipelines.partonomy import labels
from data_pipelines.partonomy.cleaning import clean
from data_pipelines.partonomy.descriptor import Descriptor, Instance, read_descriptor, write_descriptor
from data_pipelines.partonomy.splits import parse_splits, photographs, split_photographs
from plum_jax.errors import UserError

MASK = {"size": [2, 2], "counts": "02"}
OTHER = {"size": [2, 2], "polygon": [0, 0, 1, 0, 1, 1]}


def core(*instances, parts=None, objects=None, name="partonomy"):
    return Descriptor(name, instances, parts or {}, objects or {})


def test_label_grammar():
    assert labels.is_part("boats--canoe--part:hull")
    assert not labels.is_part("boats--canoe")
    assert labels.object_of("boats--canoe--part:hull") == labels.object_of("boats--canoe") == "boats--canoe"
    assert labels.part_of("mug--part:left--part:handle") == "handle"
    assert labels.category_of("boats--canoe--part:hull") == "boats"
    assert labels.concept_of("object--mug") == labels.concept_of("mug") == labels.concept_of("mug--part:rim") == "mug"
    assert labels.join("mug", "handle") == "mug--part:handle"
    with pytest.raises(ValueError, match="is no part label"):
        labels.part_of("mug")


def test_round_trip_through_a_file(tmp_path):
    path = tmp_path / "d.json"
    one = Instance("a.jpg", "object--mug", {"mug--part:rim": [MASK, OTHER], "object--mug": [MASK]})
    two = Instance("b.jpg", "object--mug", {"mug--part:rim": [MASK]}, "c.jpg", (1, 2, 3, 4), True, "x")
    descriptor = core(
        one, two, parts={"object--mug": ["mug--part:rim"], "object--pen": []}, objects={"object": ["object--mug"]}
    )
    write_descriptor(path, descriptor)
    assert read_descriptor(path) == descriptor
    value = json.loads(path.read_text(encoding="utf-8"))
    assert list(value) == ["dataset_name", "instances", "part_graph", "instance_graph"]
    assert value["instances"][0].keys() == {"image_path", "image_label", "segmentations", "segmentation_labels"}
    assert value["instances"][0]["segmentation_labels"] == ["mug--part:rim", "object--mug"]
    assert path.read_text(encoding="utf-8").startswith('{\n    "dataset_name"')
    with pytest.raises(UserError, match="cannot be written"):
        write_descriptor(tmp_path / "no" / "d.json", descriptor)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"instances": None}, "instances not a list"),
        ({"part_graph": []}, "part_graph is not an object"),
        ({"instance_graph": {"a": [1]}}, "instance_graph is not an object"),
        ({"instances": [3]}, "instance 0: the instance is int"),
        ({"instances": [{"image_path": ""}]}, 'instance 0: image_path is ""; give a text'),
        ({"instances": [{"image_path": "a", "image_label": "b", "segmentations": {"c": {}}}]}, "give an object {label"),
        (
            {"instances": [{"image_path": "a", "image_label": "b", "segmentations": {}, "highlight_box": [1, 2]}]},
            "highlight_box is .1, 2.; give four whole numbers",
        ),
        (
            {"instances": [{"image_path": "a", "image_label": "b", "segmentations": {}, "object_id": 3}]},
            "object_id is 3; give a str",
        ),
    ],
)
def test_descriptors_that_are_wrong(tmp_path, change, said):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"dataset_name": "x", "instances": [], "part_graph": {}, "instance_graph": {}, **change}))
    with pytest.raises(UserError, match=said):
        read_descriptor(path)


def test_a_file_that_is_no_descriptor(tmp_path):
    (tmp_path / "d.json").write_text('{"instances": []}')
    with pytest.raises(UserError, match="has no dataset_name, part_graph, instance_graph"):
        read_descriptor(tmp_path / "d.json")
    with pytest.raises(UserError, match="no such file"):
        read_descriptor(tmp_path / "e.json")


def test_cleaning_names_and_part_graph():
    cleaned = clean(
        core(
            Instance("a.jpg", "boats--canoe", {"boats--canoe": [MASK], "boats--canoe--part:hull": [MASK]}),
            Instance("b.jpg", "boats--canoe", {"boats--canoe--part:side_seat": [MASK], "boats--canoe--part:gone": []}),
            Instance("c.jpg", "boats--ferry", {"boats--ferry": [MASK]}),
            parts={"boats--canoe": ["boats--canoe--part:paddle"], "boats--ferry": ["boats--ferry--part:deck"]},
            objects={"boats": ["boats--canoe", "boats--ferry"]},
        ),
        object_names={"boats--ferry": "ferry boat"},
    )
    got = cleaned.descriptor
    assert [(one.image_label, one.object_id, list(one.segmentations)) for one in got.instances] == [
        ("canoe", "boats--canoe", ["hull"]), ("canoe", "boats--canoe", ["side seat"])
    ]  # fmt: skip
    assert got.part_graph == {"canoe": ["hull", "side seat"]}
    assert got.instance_graph == {"boats": ["canoe", "ferry boat"]}
    assert cleaned.counts == {"object without a part mask": 1}
    assert cleaned.merged_objects == cleaned.merged_parts == {}


def test_a_given_part_graph_adds_parts_to_objects_that_occur():
    descriptor = core(
        Instance("a.jpg", "boats--canoe", {"boats--canoe--part:hull": [MASK]}),
        parts={"boats--canoe": ["boats--canoe--part:paddle"], "boats--ferry": ["boats--ferry--part:deck"]},
    )
    assert clean(descriptor, graph="given").descriptor.part_graph == {"canoe": ["hull", "paddle"]}


def test_labels_that_get_the_same_name_are_merged_and_told():
    cleaned = clean(
        core(
            Instance("a.jpg", "boats--submarine", {"boats--submarine--part:hull": [MASK]}),
            Instance("b.jpg", "ships--submarine", {"ships--submarine--part:tower": [MASK]}),
            Instance("c.jpg", "boats--submarine", {"boats--submarine--part:hull": [MASK]}),
            Instance(
                "c.jpg", "ships--submarine", {"ships--submarine--part:hull": [OTHER], "ships--submarine--part:fin": [MASK]}
            ),
            objects={"boats": ["boats--submarine"], "ships": ["ships--submarine"]},
        )
    )
    assert cleaned.merged_objects == {"submarine": ["boats--submarine", "ships--submarine"]}
    assert cleaned.counts == {"object merged with another of the same name in its image": 1}
    assert cleaned.descriptor.part_graph == {"submarine": ["fin", "hull", "tower"]}
    assert cleaned.descriptor.instance_graph == {"boats": ["submarine"], "ships": ["submarine"]}
    assert cleaned.descriptor.instances[2].segmentations == {"hull": [MASK, OTHER], "fin": [MASK]}
    assert [one.object_id for one in cleaned.descriptor.instances] == [
        "boats--submarine", "ships--submarine", "boats--submarine"
    ]  # fmt: skip


def test_part_names_that_become_the_same_keep_all_masks():
    masks = {"car--part:tier": [MASK], "car--part:tire": [OTHER], "car--part:body": [MASK]}
    cleaned = clean(core(Instance("a.jpg", "object--car", masks), name="partimagenet"))
    assert cleaned.descriptor.instances[0].segmentations == {"tire": [MASK, OTHER], "body": [MASK]}
    assert cleaned.merged_parts == {"tire": ["tier", "tire"]}
    assert cleaned.descriptor.instances[0].object_id == ""


def test_objects_told_apart_by_boxes_stay_apart():
    masks = {"dog--part:head": [MASK]}
    pair = [Instance("a.jpg", "object--dog", masks, highlight_box=box) for box in ((0, 0, 1, 1), (1, 1, 2, 2))]
    assert len(clean(core(*pair)).descriptor.instances) == 2


def test_names_that_no_question_may_hold():
    with pytest.raises(UserError, match="gives the name '<image>'"):
        clean(core(Instance("a.jpg", "object--<image>", {"x--part:y": [MASK]})))
    with pytest.raises(UserError, match="gives the name ''"):
        clean(core(Instance("a.jpg", "object--x", {"x--part:_": [MASK]})))


def test_boxed_copies_are_of_their_original():
    paths = ("d/2008_1.jpg", "d/2008_1-1.jpg", "d/2008_2-1.jpg", "d/2008_2-2.jpg", "d/shot-7.jpg")
    instances = [Instance(path, "object--dog", {}) for path in paths]
    known = photographs(core(*instances, name="pascal_part"))
    assert known == dict(zip(paths, ("d/2008_1.jpg",) * 2 + ("d/2008_2.jpg",) * 2 + ("d/shot.jpg",), strict=True))
    known = photographs(core(*instances))  # elsewhere a number may well be part of the name
    assert [path for path in paths if known[path] != path] == ["d/2008_1-1.jpg"]
    assert photographs(core(dataclasses.replace(instances[4], source_image="d/x.jpg"))) == {"d/shot-7.jpg": "d/x.jpg"}


def test_splits_are_stratified_and_depend_on_the_seed_alone():
    instances = [(f"{label}{k}.jpg", label) for label in "abcd" for k in range(25)] + [("a0.jpg", "b"), ("a1.jpg", "c")]
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    got = split_photographs(instances, shares, 3)
    assert collections.Counter(got.values()) == {"train": 60, "val": 20, "test": 20}
    for label in "bd":
        counts = collections.Counter(
            got[photo] for photo in {photo for photo, name in instances if name == label and photo[0] == label}
        )
        assert 14 <= counts["train"] <= 16
        assert 4 <= counts["val"] <= 6
    assert split_photographs(instances[::-1], shares, 3) == got
    assert split_photographs(instances, shares, 4) != got


def test_labels_with_one_photograph_are_not_all_in_the_last_split():
    got = split_photographs([(f"{k}.jpg", f"label {k}") for k in range(50)], {"train": 0.8, "val": 0.2}, 0)
    assert collections.Counter(got.values()) == {"train": 40, "val": 10}


def test_split_shares():
    assert parse_splits("train=0.8,val=.1,test=0.1") == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert parse_splits("test=1") == {"test": 1.0}
    for text in (
        "train",
        "train=0.8,val=0.1",
        "train=0.5,train=0.5",
        "a_b=1",
        "train=0,val=1",
        "train=nan",
        "train=-1,val=2",
        "=1",
    ):
        with pytest.raises(UserError, match="--splits: "):
            parse_splits(text)
