import pickle

import numpy as np
import pytest
from fixtures_folders import HW, box, box_mask, check_sample, coco, run_lengths, same, write_image, write_json, write_pickle

from data_pipelines.refer import SOURCES, ReferSource, in_split, plain_phrase
from data_pipelines.templates.refer import NO_TARGET_ANSWERS
from plum_jax.errors import UserError

COCO_IMAGE = "COCO_train2014_000000000{:03}.jpg"


def ref(image, annotation, *sentences, split="train"):
    return {
        "ref_id": 1,
        "ann_id": annotation,
        "image_id": image,
        "category_id": 1,
        "split": split,
        "sentences": [{"sent_id": i, "sent": s, "raw": s.title(), "tokens": s.split()} for i, s in enumerate(sentences)],
    }


def folder(root, refs, annotations, dataset="refcoco", name="refs(unc).p", images=1):
    """refer_seg/<dataset> with images 1, 2, ...; annotations are (image, segmentation) with ids from 1."""
    clef = dataset == "refclef"
    names = [f"{i:02}/images/{i}.jpg" if clef else COCO_IMAGE.format(i) for i in range(1, images + 1)]
    for number, file in enumerate(names):
        base = "images/saiapr_tc-12" if clef else "images/mscoco/images/train2014"
        write_image(root / "refer_seg" / base / file, seed=number)
    content = coco(names, [(image, 1, s) for image, s in annotations], ({"name": "thing"},))
    write_json(root / "refer_seg" / dataset / "instances.json", content)
    write = write_json if name.endswith(".json") else write_pickle
    write(root / "refer_seg" / dataset / name, refs)
    return root


def sample(source, index=0, seed=0):
    return source.sample(index, np.random.default_rng(seed))


def test_phrases_own_the_masks_they_mean(tmp_path):
    refs = [ref(1, 1, " Man in Red ", "left guy."), ref(1, 2, "the dog")]
    annotations = [(1, [box(0, 0, 20, 30)]), (1, run_lengths(box_mask((30, 5, 50, 35))))]
    source = ReferSource(folder(tmp_path, refs, annotations), dataset="refcoco", per_image=5)
    assert (source.family, source.dataset, source.grounded, len(source), source.listed) == ("refer", "refcoco", True, 1, 1)
    assert not source.skipped
    found = sample(source)
    named = check_sample(found)
    assert set(named) == {"man in red", "left guy", "the dog"}
    assert len(found.dialogues) == 3
    assert len(found.masks) == 2  # two phrases share one
    assert named["man in red"] is named["left guy"]
    np.testing.assert_array_equal(named["left guy"], box_mask((0, 0, 20, 30)))
    np.testing.assert_array_equal(named["the dog"], box_mask((30, 5, 50, 35)))
    assert found.key == COCO_IMAGE.format(1)
    assert found.image == str(tmp_path / "refer_seg/images/mscoco/images/train2014" / found.key)


def test_overlapping_polygons_are_ones_and_zeros(tmp_path):  # D23; check_sample refuses a 2
    annotations = [(1, [box(0, 0, 20, 20), box(10, 10, 30, 30)])]
    named = check_sample(sample(ReferSource(folder(tmp_path, [ref(1, 1, "it")], annotations), dataset="refcoco")))
    np.testing.assert_array_equal(named["it"], box_mask((0, 0, 20, 20), (10, 10, 30, 30)))


def test_every_data_set_gives_the_same_kind_of_sample(tmp_path):  # D24
    kinds = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p", "refclef": "refs(unc).p"}
    kinds["grefcoco"] = "grefs(unc).json"
    assert set(kinds) == set(SOURCES)
    fields = set()
    for dataset, name in kinds.items():
        folder(tmp_path, [ref(1, 1, "left")], [(1, [box(0, 0, 9, 9)])], dataset, name)
        found = sample(SOURCES[dataset](tmp_path))
        assert set(check_sample(found)) == {"left"}
        assert (found.family, found.dataset) == ("refer", dataset)
        fields.add(tuple((key, type(value)) for key, value in vars(found).items()))
    assert len(fields) == 1
    assert sample(ReferSource(tmp_path, dataset="refclef")).image.endswith("refer_seg/images/saiapr_tc-12/01/images/1.jpg")


def test_another_division_into_splits(tmp_path):
    folder(tmp_path, [ref(1, 1, "left")], [(1, [box(0, 0, 9, 9)])], "refcocog", "refs(google).p")
    assert len(ReferSource(tmp_path, dataset="refcocog", split_by="google")) == 1
    with pytest.raises(UserError, match=r"refcocog/refs\(umd\)\.json: no such file; .*docs/data/refcoco\.md"):
        ReferSource(tmp_path, dataset="refcocog")


def test_several_targets_are_one_mask(tmp_path):
    refs = [ref(1, [2, 1], "both cups"), ref(1, [1], "left cup")]
    annotations = [(1, [box(0, 0, 10, 10)]), (1, [box(30, 0, 40, 10)])]
    source = ReferSource(folder(tmp_path, refs, annotations, "grefcoco", "grefs(unc).p"), dataset="grefcoco")
    named = check_sample(sample(source))
    np.testing.assert_array_equal(named["both cups"], box_mask((0, 0, 10, 10), (30, 0, 40, 10)))
    np.testing.assert_array_equal(named["left cup"], box_mask((0, 0, 10, 10)))


def test_no_target_is_an_answer_without_a_span(tmp_path):
    refs = [ref(1, [-1], "the purple elephant", "a second moon"), ref(1, [1], "cup")]
    source = ReferSource(folder(tmp_path, refs, [(1, [box(0, 0, 10, 10)])], "grefcoco", "grefs(unc).json"), dataset="grefcoco")
    assert not source.skipped
    found = sample(source)
    assert len(found.masks) == 1
    without = [dialogue for dialogue in found.dialogues if not dialogue.spans]
    assert len(without) == 2
    for dialogue in without:
        (question, answer), *more = dialogue.turns
        assert not more
        assert not dialogue.masks
        assert answer in NO_TARGET_ANSWERS
        assert "the purple elephant" in question or "a second moon" in question
    assert len({sample(source, seed=s).dialogues[0].turns[0][1] for s in range(40)} & set(NO_TARGET_ANSWERS)) > 1
    folder(tmp_path / "none", refs[:1], [], "grefcoco", "grefs(unc).json")
    only = sample(ReferSource(tmp_path / "none", dataset="grefcoco"))
    assert (only.masks, len(only.dialogues)) == ((), 2)


def test_a_phrase_with_two_meanings_is_left_out(tmp_path):
    refs = [ref(1, 1, "man", "left"), ref(1, 2, "Man ", "right"), ref(1, 1, "left")]
    annotations = [(1, [box(0, 0, 10, 10)]), (1, [box(30, 0, 40, 10)])]
    source = ReferSource(folder(tmp_path, refs, annotations), dataset="refcoco", per_image=9)
    assert source.skipped == {"phrase with several meanings in one image": 1}
    found = sample(source)
    assert set(check_sample(found)) == {"left", "right"}
    assert len(found.dialogues) == 2


@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("testA", {"test", "testA"}),
        ("testB", {"test", "testB"}),
        ("testAB", {"test", "testA", "testB"}),
        ("testBC", {"test", "testB", "testC"}),
        ("test", {"test"}),
    ],
)
def test_split_filters(theirs, wanted):
    splits = ("train", "val", "test", "testA", "testB", "testC")
    assert {split for split in splits if in_split(theirs, split)} == wanted


def test_only_the_split_is_read(tmp_path):
    refs = [ref(1, 1, "one"), ref(1, 1, "two", split="val"), ref(2, 2, "three", split="testB"), ref(2, 2, "four")]
    folder(tmp_path, refs, [(1, [box(0, 0, 9, 9)]), (2, [box(0, 0, 9, 9)])], images=2)

    def phrases(source):
        return [set(check_sample(sample(source, i))) for i in range(len(source))]

    assert phrases(ReferSource(tmp_path, dataset="refcoco")) == [{"one"}, {"four"}]
    assert phrases(ReferSource(tmp_path, dataset="refcoco", split="val")) == [{"two"}]
    assert phrases(ReferSource(tmp_path, dataset="refcoco", split="test")) == [{"three"}]
    with pytest.raises(UserError, match="has no expression of split 'testC'; it has testB, train, val"):
        ReferSource(tmp_path, dataset="refcoco", split="testC")


def test_what_is_left_out_is_counted(tmp_path):
    refs = [
        ref(1, 1, "kept", " . ", "a <image>"),
        ref(1, 2, "no mask"),
        ref(1, 77, "no annotation"),
        ref(1, 3, "of another image"),
        ref(2, 3, "image is missing"),
        ref(3, 2, "nothing left"),
        ref(9, 1, "unknown image"),
    ]
    folder(tmp_path, refs, [(1, [box(0, 0, 9, 9)]), (1, []), (2, [box(0, 0, 9, 9)])], images=3)
    (tmp_path / "refer_seg/images/mscoco/images/train2014" / COCO_IMAGE.format(2)).unlink()
    source = ReferSource(tmp_path, dataset="refcoco")
    assert (len(source), source.listed) == (1, 4)
    assert source.skipped == {
        "phrase that is empty or holds a reserved word": 2,
        "expression whose target has no mask": 4,
        "annotation without a usable mask": 1,
        "image file missing": 1,
        "image without a phrase": 1,
        "image of a phrase not in instances.json": 1,
    }
    image = COCO_IMAGE.format
    assert {(key, reason) for key, reason, _ in source.faults} == {
        (f"{image(1)}: ''", "phrase that is empty or holds a reserved word"),
        (f"{image(1)}: 'a <image>'", "phrase that is empty or holds a reserved word"),
        (f"{image(1)}: no mask", "expression whose target has no mask"),
        (f"{image(1)}: no annotation", "expression whose target has no mask"),
        (f"{image(1)}: of another image", "expression whose target has no mask"),
        (f"{image(3)}: nothing left", "expression whose target has no mask"),
        (f"{image(1)}: annotation 2", "annotation without a usable mask"),
        (image(2), "image file missing"),
        (image(3), "image without a phrase"),
        ("image 9", "image of a phrase not in instances.json"),
    }
    assert set(check_sample(sample(source))) == {"kept"}


def test_thin_rings_and_broken_run_lengths(tmp_path):
    refs = [ref(1, 1, "thin"), ref(1, 2, "cup"), ref(2, 3, "alone"), ref(3, 4, "broken")]
    thin = [box(3.0, 3.0, 3.2, 20.0)]
    annotations = [(1, thin), (1, [box(0, 0, 9, 9)]), (2, thin), (3, {"size": list(HW), "counts": "zzz"})]
    source = ReferSource(folder(tmp_path, refs, annotations, images=3), dataset="refcoco", per_image=1)
    assert {name for seed in range(9) for name in check_sample(sample(source, 0, seed))} == {"cup"}
    with pytest.raises(UserError, match=r"instances\.json: no phrase of COCO_train2014_000000000002\.jpg means"):
        sample(source, 1)
    with pytest.raises(UserError, match=r"instances\.json: an annotation of COCO_train2014_000000000003\.jpg: counts is"):
        sample(source, 2)


def test_order_draws_and_pickling_are_deterministic(tmp_path):
    refs = [ref(i, i, *(f"{word} {i}" for word in ("left", "right", "middle", "top"))) for i in (3, 1, 2)]
    folder(tmp_path, refs, [(i, [box(i, 0, 20 + i, 9)]) for i in (1, 2, 3)], images=3)
    source = ReferSource(tmp_path, dataset="refcoco", per_image=2)
    assert [sample(source, i).key for i in range(3)] == [COCO_IMAGE.format(i) for i in (1, 2, 3)]
    again = pickle.loads(pickle.dumps(ReferSource(tmp_path, dataset="refcoco", per_image=2)))  # from JSON now
    assert all(same(sample(source, i, 3), sample(again, i, 3)) for i in (2, 0, 1))
    assert not same(sample(source, 0, 3), sample(source, 0, 4))
    assert len({frozenset(check_sample(sample(source, 0, seed))) for seed in range(40)}) == 6  # pairs of four phrases


def test_wrong_arguments_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="use refcoco, refcoco"):
        ReferSource(tmp_path, dataset="flickr")
    with pytest.raises(UserError, match="no split 'dev'; use train, val, test, testA"):
        ReferSource(tmp_path, dataset="refcoco", split="dev")
    folder(tmp_path, [ref(1, 1, "left")], [(1, [box(0, 0, 9, 9)])])
    (tmp_path / "refer_seg/images/mscoco/images/train2014" / COCO_IMAGE.format(1)).unlink()
    with pytest.raises(UserError, match=r"with a phrase of split 'train' \(left out: 1 image file missing\)"):
        ReferSource(tmp_path, dataset="refcoco")
    (tmp_path / "refer_seg/images/mscoco/images/train2014").rmdir()
    with pytest.raises(UserError, match=r"train2014: no such folder; .*docs/data/refcoco\.md"):
        ReferSource(tmp_path, dataset="refcoco")
    (tmp_path / "refer_seg/refcoco/instances.json").unlink()
    with pytest.raises(UserError, match=r"instances\.json: no such file; .*docs/data/refcoco\.md"):
        ReferSource(tmp_path, dataset="refcoco")


def test_phrases_have_one_form():
    assert plain_phrase("  The man, left.. ") == "the man, left"
    assert plain_phrase(" . ") == ""
