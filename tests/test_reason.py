import json
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from data_pipelines.conversation import encode
from data_pipelines.masks import decode_segmentation
from data_pipelines.reason import FOLDER, IGNORE, TARGET, ReasonSeg, label_map
from data_pipelines.templates import reason as templates
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.errors import UserError

HW = (40, 60)
QUERIES = ["What could the dog use to dig?", "Which limbs touch the ground?", "Où sont les pattes, “s’il vous plaît”?"]
SAID = ["Dogs could use this to dig.", "These limbs touch the ground.", "The paws are these."]


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


TARGET_BOX = ("target", box(10, 5, 30, 25))


def annotation(shapes=(TARGET_BOX,), text=tuple(QUERIES), is_sentence=True):
    shapes = [{"label": label, "points": points} for label, points in shapes]
    return {"text": list(text), "is_sentence": is_sentence, "shapes": shapes}


def write(root, annotations, *, split="train", encoding="utf-8", said=None, explained=None):
    """A folder as ReasonSeg is released: JPEG and JSON beside each other, explanations, and our responses."""
    folder = root / FOLDER / split
    folder.mkdir(parents=True, exist_ok=True)
    for stem, entry in annotations.items():
        Image.new("RGB", HW[::-1], "white").save(folder / f"{stem}.jpg")
        (folder / f"{stem}.json").write_bytes(json.dumps(entry, ensure_ascii=False).encode(encoding))
    if said is not None:
        (folder / f"{split}_reformulated_responses.json").write_text(json.dumps(said), encoding="utf-8")
    if explained is not None:
        (root / FOLDER / "explanatory").mkdir(exist_ok=True)
        outputs = [{"image": f"{stem}.jpg", "query": QUERIES[0], "outputs": text} for stem, text in explained.items()]
        (root / FOLDER / "explanatory" / "train.json").write_text(json.dumps(outputs), encoding="utf-8")
    return root


def spoken(dialogue):
    """-> (question, answer, [words of the spans])."""
    ((question, answer),) = dialogue.turns
    return question, answer, [answer[span.char_start : span.char_end] for span in dialogue.spans]


def draws(source, count=200, index=0):
    return [source.sample(index, np.random.default_rng(seed)) for seed in range(count)]


def test_the_whole_response_owns_the_target_mask(tmp_path):  # D20: the reference pairs nothing
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, said={"a": SAID}))
    sample = source.sample(0, np.random.default_rng(0))
    assert (sample.family, sample.dataset, sample.key) == ("reason", "reason_seg", "train/a")
    assert sample.image == str(tmp_path / FOLDER / "train/a.jpg") and len(sample.dialogues) == 3
    (entry,) = sample.masks
    mask = decode_segmentation(entry)
    expected = np.zeros(HW, np.uint8)
    expected[5:26, 10:31] = 1
    np.testing.assert_array_equal(mask, expected)
    for dialogue in sample.dialogues:
        question, answer, spans = spoken(dialogue)
        assert question.startswith("<image>\n") and spans == [answer] and dialogue.masks == (0,)
        encoded = encode(dialogue.turns, load_tokenizer("tiny"), "brief", dialogue.spans)
        assert encoded.num_spans == 1 and (encoded.bio[encoded.loss_weight > 0][:-1] > 0).all()


def test_a_query_gets_its_own_response(tmp_path):  # D20c: the reference takes the response at the place in the sample
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, said={"a": SAID}), per_image=2)
    orders = set()
    for sample in draws(source):
        assert len(sample.dialogues) == 2
        for dialogue in sample.dialogues:
            question, answer, _ = spoken(dialogue)
            (k,) = [k for k, query in enumerate(QUERIES) if query in question]
            assert answer == SAID[k]
        orders.add(tuple(spoken(dialogue)[1] for dialogue in sample.dialogues))
    assert len(orders) == 6


def test_an_image_without_an_explanation_is_not_answered_with_its_query(tmp_path):  # D20b
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, said={"a": SAID}, explained={"other": "Because."}))
    assert source.record(0)["explanation"] is None
    for sample in draws(source, 30):
        assert all(spoken(dialogue)[1] in SAID and dialogue.masks == (0,) for dialogue in sample.dialogues)


def test_three_choices_with_an_explanation(tmp_path):
    why = "Its paws have claws."
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, said={"a": SAID}, explained={"a": why}), per_image=1)
    kinds = []
    for sample in draws(source, 2000):
        (dialogue,) = sample.dialogues
        question, answer, spans = spoken(dialogue)
        (k,) = [k for k, query in enumerate(QUERIES) if query in question]
        if question == f"<image>\n{QUERIES[k]}":
            kinds.append(2)
            assert answer == SAID[k] and dialogue.spans == dialogue.masks == sample.masks == ()
        elif answer.endswith(why):
            kinds.append(1)
            assert answer == f"{SAID[k]} {why}" and spans == [SAID[k]] and dialogue.masks == (0,) and len(sample.masks) == 1
            assert question.removeprefix(f"<image>\n{QUERIES[k]} ") in templates.EXPLAIN
        else:
            kinds.append(0)
            assert question in [t.format(query=QUERIES[k]) for t in templates.LONG] and spans == [answer]
    share = np.bincount(kinds, minlength=3) / len(kinds)
    np.testing.assert_allclose(share, (0.45, 0.45, 0.1), atol=0.04)
    never = ReasonSeg(tmp_path, explanatory=0.0)
    assert all(sample.masks for sample in draws(never, 100))


def test_without_responses_a_carrier_sentence_says_the_query_and_it_is_said_once(tmp_path):
    phrase = annotation(text=["the place to sit on."], is_sentence=False)
    write(tmp_path, {"a": annotation(), "b": phrase})
    with pytest.warns(UserWarning, match="4 queries have no response") as caught:
        source = ReasonSeg(tmp_path)
        long, short = (source.sample(k, np.random.default_rng(1)).dialogues for k in (0, 1))
    assert len(caught) == 1 and source.without_response == 4
    assert {spoken(d)[1] for d in long} == {f'This region is the answer to "{query}"' for query in QUERIES}
    question, answer, spans = spoken(short[0])
    assert answer == "This region shows the place to sit on." and spans == [answer]
    assert question in [t.format(query="the place to sit on.") for t in templates.SHORT]
    with pytest.warns(UserWarning):
        narrow = ReasonSeg(tmp_path, span="query")
    assert spoken(narrow.sample(1, np.random.default_rng(1)).dialogues[0])[2] == ["the place to sit on"]
    assert {spoken(d)[2][0] for d in narrow.sample(0, np.random.default_rng(1)).dialogues} == set(QUERIES)


def test_responses_from_another_file(tmp_path):
    write(tmp_path / "root", {"a": annotation()})
    (tmp_path / "mine.json").write_text(json.dumps({"a": SAID, "unknown": ["x"]}), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ReasonSeg(tmp_path / "root", responses=tmp_path / "mine.json")
    assert source.without_response == 0 and source.record(0)["responses"] == tuple(SAID)


def test_smaller_shapes_are_painted_over_larger_ones():
    shapes = annotation(
        [
            ("target", box(12, 12, 14, 14)),  # in the ignored box, which is in the large target
            ("Ignore region", box(10, 10, 20, 20)),
            ("target", box(2, 2, 35, 35)),
            ("flag", box(0, 0, 59, 39)),
        ]
    )["shapes"]
    labels = label_map(shapes, HW)
    expected = np.zeros(HW, np.uint8)
    expected[2:36, 2:36] = TARGET
    expected[10:21, 10:21] = IGNORE
    expected[12:15, 12:15] = TARGET
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(label_map(shapes[::-1], HW), expected)


def test_ignored_pixels_are_not_part_of_the_target(tmp_path):
    shapes = [("target", box(2, 2, 35, 35)), ("ignore", box(10, 10, 20, 20))]
    source = ReasonSeg(write(tmp_path, {"a": annotation(shapes)}, said={"a": SAID}))
    mask = decode_segmentation(source.sample(0, np.random.default_rng(0)).masks[0])
    assert mask.sum() == 34 * 34 - 11 * 11 and not mask[10:21, 10:21].any()


def test_lines_and_dots_are_drawn():
    shapes = [{"label": "target", "points": [[3, 4], [8, 4]]}, {"label": "target", "points": [[20.7, 9.2]]}]
    labels = label_map(shapes, HW)
    assert labels[4, 3:9].all() and labels[9, 20] == TARGET and labels.astype(bool).sum() == 7


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_annotations_in_utf8_or_cp1252(tmp_path, encoding):
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, encoding=encoding, said={"a": SAID}))
    assert source.record(0)["queries"] == tuple(QUERIES)


def test_shapes_are_drawn_on_the_upright_image(tmp_path):
    write(tmp_path, {"a": annotation([("target", box(5, 40, 20, 55))])}, said={"a": SAID})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", HW[::-1]).save(tmp_path / FOLDER / "train/a.jpg", exif=exif)
    mask = ReasonSeg(tmp_path).record(0)["mask"]
    assert mask["size"] == [60, 40] and decode_segmentation(mask).sum() == 16 * 16


def test_what_cannot_be_used_is_counted_by_reason_when_opened(tmp_path):
    good = annotation()
    bad = {
        "b": {**good, "text": []},
        "c": {**good, "shapes": [{"label": "target"}]},
        "d": annotation([("target", box(100, 100, 120, 120))]),
        "e": annotation([("target", [[1, "x"], [2, 3], [4, 5]])]),
        "f": annotation([("target", box(2, 2, 5, 5)), ("ignore", box(2, 2, 5, 5))]),
        "g": good,
        "h": good,
        "i": {**good, "text": ["Where is <image>?"]},
        "j": annotation([("flag", box(2, 2, 5, 5))]),
        "k": good,
    }
    write(tmp_path, {"a": good, **bad}, said={"a": SAID})
    folder = tmp_path / FOLDER / "train"
    (folder / "g.json").unlink()
    (folder / "h.jpg").write_bytes(b"not a picture")
    (folder / "k.jpg").unlink()
    source = ReasonSeg(tmp_path)
    assert len(source) == 1 and source.record(0)["key"] == "train/a"
    assert ("train/h", "image not readable", f"{folder / 'h.jpg'}: image not readable") in source.faults
    assert source.skipped == {
        "a query is empty or no text": 2, "annotation not readable": 1, "no target pixel": 3, "shape not readable": 1,
        "annotation missing": 1, "image not readable": 1, "image file missing": 1,
    }  # fmt: skip


def test_the_same_generator_gives_the_same_sample_also_in_a_worker(tmp_path):
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, said={"a": SAID}, explained={"a": "Because."}), per_image=2)
    assert draws(source, 20) == draws(pickle.loads(pickle.dumps(source)), 20)
    assert len({sample.dialogues for sample in draws(source, 20)}) > 5


def test_a_stored_record_gives_the_same_samples(tmp_path):
    source = ReasonSeg(write(tmp_path, {"a": annotation()}, said={"a": SAID}, explained={"a": "Because."}), per_image=2)
    record, draw = json.loads(json.dumps(source.record(0))), ReasonSeg.drawing(per_image=2)
    assert [draw(record, np.random.default_rng(k)) for k in range(20)] == draws(source, 20)
    assert [path.name for path in source.index_files] == ["train_reformulated_responses.json", "train.json", "a.json"]


def test_other_splits_and_wrong_use(tmp_path):
    write(tmp_path, {"a": annotation()}, split="val", said={"a": SAID})
    assert ReasonSeg(tmp_path, split="val").sample(0, np.random.default_rng(0)).key == "val/a"
    for options, message in (
        ({}, "train: has no images; the layout is reason_seg/ReasonSeg"),
        ({"split": "val", "per_image": 0}, "per_image 0"),
        ({"split": "val", "explanatory": 1.5}, "explanatory 1.5"),
        ({"split": "val", "span": "noun"}, "span 'noun'"),
        ({"split": "val", "responses": tmp_path / "none.json"}, "none.json: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            ReasonSeg(tmp_path, **options)


@pytest.mark.parametrize(
    "said, message",
    [
        ({"a": SAID[:2]}, "a.json: has 3 queries but 2 responses under 'a'; give one response for each query"),
        ({"a": "text"}, "'a' has \"text\"; give a list of texts"),
        ({"a": [*SAID[:2], ""]}, "give a list of texts"),
        ({"a": [*SAID[:2], "One </s> two"]}, "give a list of texts"),
        ([SAID], "holds a list; give JSON"),
    ],
)
def test_bad_responses_are_refused(tmp_path, said, message):
    with pytest.raises(UserError, match=message):
        ReasonSeg(write(tmp_path, {"a": annotation()}, said=said))


def test_template_lists_have_the_sizes_of_the_reference():
    assert [len(texts) for texts in (templates.SHORT, templates.LONG, templates.EXPLAIN)] == [11, 4, 5]
    for text in (*templates.SHORT, *templates.LONG):
        assert text.startswith("<image>\n") and text.count("{query}") == 1 and text.endswith((".", "?"))
    assert len({*templates.SHORT, *templates.LONG}) == 15
