import collections
import json
import pickle

import numpy as np
import pytest
from fixtures_partonomy import BOXES, box_mask, question, write_entries, write_folder
from PIL import Image

from data_pipelines.explanatory import TRAINING_TYPES, Explanatory
from data_pipelines.masks import decode_segmentation, encode_rle
from plum_jax.errors import UserError

HW = (40, 72)


def draws(source, count=100, index=0):
    return [source.sample(index, np.random.default_rng(seed)) for seed in range(count)]


def pixels(mask):
    return mask if isinstance(mask, np.ndarray) else decode_segmentation(mask)


def folder_of(tmp_path, *entries, name="one", split="train"):
    """A folder with these questions about images that are there."""
    folder = tmp_path / name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for entry in entries:
        Image.new("RGB", HW[::-1]).save(folder / entry["image_path"])
    write_entries(folder, entries, split)
    return folder


def kinds(source, count=100):
    """Counter of first words of the answers, which say the question type of the fixtures."""
    asked = [d.turns[0][1] for sample in draws(source, count) for d in sample.dialogues]
    return collections.Counter("positive" if "in common" in answer else "identification" for answer in asked)


def test_the_correct_answer_by_its_type_with_a_mask_for_each_part(tmp_path):
    for place in range(5):  # never by position: the generator of the reference stores the correct choice first
        folder = folder_of(tmp_path, question("images/a.png", HW, correct=place), name=str(place))
        source = Explanatory(folder)
        sample = source.sample(0, np.random.default_rng(0))
        assert (sample.family, sample.dataset) == ("explanatory", "partonomy")
        assert sample.key == f"{place}/partonomy_qa_pairs_train:images/a.png" and sample.image == str(folder / "images/a.png")
        (dialogue,) = sample.dialogues
        ((asked, answer),) = dialogue.turns
        assert asked == "<image>\nWhat visible parts does the desk lamp in the image have?"
        assert answer == "The desk lamp in the image has the following visible parts: base, lamp shade, and pole."
        assert [answer[s.char_start : s.char_end] for s in dialogue.spans] == ["base", "lamp shade", "pole"]
        for name, mask in zip(("base", "lamp shade", "pole"), dialogue.masks, strict=True):
            np.testing.assert_array_equal(pixels(sample.masks[mask]), box_mask(HW, BOXES[name]))


def test_spans_are_in_the_list_and_masks_stay_with_their_parts(tmp_path):  # acceptance tests 5 and 6 of D 7.5
    entry = question("images/a.png", HW, parts=("pole", "base"))
    entry["answer_choices"][0] = "The desk lamp on a pole in the image has the following visible parts: mast, and foot."
    sample = Explanatory(folder_of(tmp_path, entry)).sample(0, np.random.default_rng(0))
    (dialogue,) = sample.dialogues
    answer = dialogue.turns[0][1]
    assert [answer[s.char_start : s.char_end] for s in dialogue.spans] == ["mast", "foot"]
    for name, mask in zip(("pole", "base"), dialogue.masks, strict=True):
        np.testing.assert_array_equal(pixels(sample.masks[mask]), box_mask(HW, BOXES[name]))


def test_several_masks_of_a_part_are_united(tmp_path):
    entry = question("images/a.png", HW, parts=("base",))
    boxes = [(0.0, 0.0, 0.2, 0.2), (0.1, 0.1, 0.5, 0.5)]
    entry["segmentations"]["base"] = [encode_rle(box_mask(HW, box)) for box in boxes]
    sample = Explanatory(folder_of(tmp_path, entry)).sample(0, np.random.default_rng(0))
    np.testing.assert_array_equal(pixels(sample.masks[0]), box_mask(HW, boxes[0]) | box_mask(HW, boxes[1]))


def test_questions_about_one_object_share_its_masks_and_two_objects_do_not(tmp_path):
    other = question("images/a.png", HW, "negative_with_label", parts=("pole",))
    other["segmentations"] = {"pole": [encode_rle(box_mask(HW, (0.8, 0.0, 1.0, 0.5)))]}
    entries = [question("images/a.png", HW), question("images/a.png", HW, "positive_with_label", parts=("pole", "base")), other]
    sample = Explanatory(folder_of(tmp_path, *entries), per_image=9).sample(0, np.random.default_rng(0))
    assert len(sample.dialogues) == 3 and len(sample.masks) == 4
    owners = sorted((d.masks for d in sample.dialogues), key=len)
    assert (
        [len(masks) for masks in owners] == [1, 2, 3]
        and set(owners[1]) < set(owners[2])
        and not set(owners[0]) & set(owners[2])
    )
    np.testing.assert_array_equal(pixels(sample.masks[owners[0][0]]), pixels(other["segmentations"]["pole"][0]))


def test_two_turn_questions_can_be_trained_on(tmp_path):
    folder = folder_of(tmp_path, question("images/a.png", HW, "whole_to_part"), question("images/b.png", HW, "part_to_whole"))
    source = Explanatory(folder, question_types=("whole_to_part", "part_to_whole"))
    whole, part = (source.sample(k, np.random.default_rng(0)).dialogues[0] for k in (0, 1))
    assert [turn[1] for turn in whole.turns][0] == "It is a desk lamp." and {span.turn for span in whole.spans} == {1}
    assert [turn[1] for turn in part.turns][1] == "It is a desk lamp." and {span.turn for span in part.spans} == {0}
    assert len(whole.masks) == len(part.masks) == 3


def test_all_subsets_are_used_together(tmp_path):  # D26: the reference keeps the last one
    for name, count in (("paco", 2), ("pascal", 3)):
        write_folder(tmp_path / name, images=count)
    both = Explanatory([tmp_path / "paco", tmp_path / "pascal"])
    assert len(both) == 5 and len(Explanatory(tmp_path / "pascal")) == 3
    assert len(Explanatory([tmp_path / "paco", tmp_path / "paco"])) == 2
    samples = [both.sample(k, np.random.default_rng(0)) for k in range(5)]
    assert len({sample.key for sample in samples}) == 5
    assert [sample.image.split("/")[-3] for sample in samples] == ["paco"] * 2 + ["pascal"] * 3


def test_all_question_files_of_a_folder_with_that_split_are_used(tmp_path):
    write_folder(tmp_path, images=2)
    (tmp_path / "paco_lvis_qa_pairs_train.json").write_text((tmp_path / "partonomy_qa_pairs_train.json").read_text())
    write_entries(tmp_path, [], "val")
    (tmp_path / "partonomy_qa_pairs.json").write_text("[]")
    source = Explanatory(tmp_path)
    assert [path.name for path in source.index_files] == ["paco_lvis_qa_pairs_train.json", "partonomy_qa_pairs_train.json"]
    assert len(source) == 4
    assert len(Explanatory(tmp_path / "paco_lvis_qa_pairs_train.json")) == 2


def test_only_the_types_asked_for_and_by_weight(tmp_path):
    entries = [question("images/a.png", HW) for _ in range(4)]
    entries += [
        question("images/a.png", HW, "positive_with_label", parts=("base",)),
        question("images/a.png", HW, "part_to_whole"),
    ]
    folder = folder_of(tmp_path, *entries)
    count = kinds(Explanatory(folder), 2000)  # one in two although there are four of one kind and one of the other
    np.testing.assert_allclose(count["positive"] / 2000, 0.5, atol=0.04)
    count = kinds(Explanatory(folder, question_weights={"positive_with_label": 3.0}), 2000)
    np.testing.assert_allclose(count["positive"] / 2000, 0.75, atol=0.04)
    assert kinds(Explanatory(folder, question_weights={"positive_with_label": 0})).keys() == {"identification"}
    assert kinds(Explanatory(folder, question_weights={"default": 0, "positive_with_label": 1})).keys() == {"positive"}
    assert not Explanatory(folder).skipped


def test_one_question_of_an_image_or_each_in_turn(tmp_path):
    entries = [question("images/a.png", HW, correct=k) for k in range(5)]
    for number, entry in enumerate(entries):
        entry["question"] = f"Question {number}?"
    folder = folder_of(tmp_path, *entries, question("images/b.png", HW))
    one = Explanatory(folder)
    assert len(one) == 2 and len({sample.dialogues for sample in draws(one, 60)}) == 5
    every = Explanatory(folder, sample_one_question_per_image=False)
    assert len(every) == 6
    asked = [every.sample(k, np.random.default_rng(0)) for k in range(6)]
    assert [s.dialogues[0].turns[0][0] for s in asked[:5]] == [f"<image>\nQuestion {k}?" for k in range(5)]
    assert len({sample.key for sample in asked}) == 6
    pairs = Explanatory(folder, sample_one_question_per_image=False, per_image=2)
    assert [len(pairs.sample(k, np.random.default_rng(0)).dialogues) for k in range(len(pairs))] == [2, 2, 1, 1]


def test_draws_depend_on_the_generator_alone(tmp_path):  # D25
    write_folder(tmp_path, images=3)
    source = Explanatory(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    for _ in range(3):
        copy.sample(1, np.random.default_rng(99))  # what a worker did before changes nothing
    first, second = ([sample.dialogues for sample in draws(each, 20)] for each in (source, copy))
    assert first == second and len(set(first)) > 1


@pytest.mark.parametrize("options", [{"per_image": 2}, {"sample_one_question_per_image": False, "per_image": 2}])
def test_a_stored_record_gives_the_same_samples(tmp_path, options):
    entries = [question("images/a.png", HW, correct=k) for k in range(2)]
    entries += [question("images/a.png", HW, "positive_with_label", parts=("base",))]
    source = Explanatory(folder_of(tmp_path, *entries), **options)
    draw = Explanatory.drawing(**options)
    for index in range(len(source)):
        record = json.loads(json.dumps(source.record(index)))
        assert len(record["objects"]) == 1
        assert [draw(record, np.random.default_rng(k)) for k in range(9)] == draws(source, 9, index)
    assert source.parts == ("base", "lamp shade", "pole")
    with pytest.raises(UserError, match="has no question of difference; build it again"):
        Explanatory.drawing(question_types=("difference",))(record, np.random.default_rng(0))


def test_what_cannot_be_used_is_counted_by_reason_when_opened(tmp_path):
    good = question("images/a.png", HW)
    bad = [
        {**good, "answer_types": ["correct"] * 5},
        {**good, "image_path": "../a.png"},
        {**good, "answer_choices": ["It has parts."] * 5},
        {**good, "image_path": "images/none.png"},
        {**good, "question_type": "why"},
        {**good, "question_type": "difference", "answer_types": []},  # of no interest here
        "text",
    ]
    folder = folder_of(tmp_path, good)
    write_entries(folder, [*bad, good])
    source = Explanatory(folder)
    assert source.skipped == {"question not readable": 4, "answer does not list its parts": 1, "image file missing": 1}
    assert len(source) == 1 and source.sample(0, np.random.default_rng(0)).dialogues
    messages = [message for _, _, message in source.faults]
    assert len(messages) == 6 and all(str(folder / "partonomy_qa_pairs_train.json") in message for message in messages)
    assert "entry 3: image 'images/none.png' is missing" in messages[3]
    write_entries(folder, bad)
    with pytest.raises(UserError, match="no usable question of identification_with_label, .*4 question not readable"):
        Explanatory(folder)


def test_masks_of_different_sizes_are_named(tmp_path):
    entry = question("images/a.png", HW, parts=("base",))
    entry["segmentations"]["base"].append(encode_rle(np.ones((5, 6))))
    source = Explanatory(folder_of(tmp_path, entry))
    with pytest.raises(
        UserError, match=r"one/partonomy_qa_pairs_train:images/a.png: masks of 'base' have the sizes \[\(5, 6\)"
    ):
        source.sample(0, np.random.default_rng(0))


def test_an_opened_folder_keeps_a_few_numbers_for_each_question(tmp_path):
    entries = [question("images/a.png", HW)] * 500
    assert len(pickle.dumps(Explanatory(folder_of(tmp_path, *entries)))) < 60 * 500 < len(json.dumps(entries))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "val"}, "has no question file of split 'val'; put <name>_qa_pairs_<split>.json"),
        ({"per_image": 0}, "per_image is 0"),
        ({"question_types": ("why",)}, "question type 'why' is unknown"),
        ({"question_weights": {"part_to_whole": 1.0}}, "question_weights has part_to_whole=1.0"),
        ({"question_weights": {"positive_with_label": -1}}, "question_weights has positive_with_label=-1"),
        ({"question_weights": {"default": 0}}, "no question type has a positive weight"),
        ({"question_types": ("difference",)}, "no usable question of difference \\(left out: nothing, and other types\\)"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        Explanatory(folder_of(tmp_path, question("images/a.png", HW)), **options)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder with question files is given"):
        Explanatory([])
    with pytest.raises(UserError, match="none.json: no such file; put <name>_qa_pairs_<split>.json"):
        Explanatory(tmp_path / "none.json")


def test_the_types_of_the_paper_are_the_default():
    assert TRAINING_TYPES == ("identification_with_label", "positive_with_label", "negative_with_label")
