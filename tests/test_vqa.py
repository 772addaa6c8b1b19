import json
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.conversation import encode
from data_pipelines.folders import find_image
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.vqa import FILE, Vqa, parse_entry
from plum_jax.errors import UserError

QUESTION, ANSWER = {"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A cat."}


def entry(number=0, image="000000000001.jpg", turns=(QUESTION, ANSWER)):
    return {"id": f"{number:03}", **({} if image is None else {"image": image}), "conversations": list(turns)}


def write(root, entries, file=FILE, images=("coco/train2017/000000000001.jpg",)):
    for path in [root / name for name in (*images, file)]:
        path.parent.mkdir(parents=True, exist_ok=True)
    for name in images:
        Image.new("RGB", (12, 8), "white").save(root / name)
    (root / file).write_text(json.dumps(entries), encoding="utf-8")
    return root


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_conversation_of_several_turns(tmp_path):
    more = [{"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": " Grey. "}]
    source = Vqa(write(tmp_path, [entry(7, turns=(QUESTION, ANSWER, *more))]))
    sample = source.sample(0, rng())
    assert (source.family, source.grounded, source.dataset, len(source)) == ("vqa", False, "llava_instruct_150k", 1)
    assert (sample.family, sample.dataset, sample.key, sample.masks) == ("vqa", "llava_instruct_150k", "007#0", ())
    assert sample.image == str(tmp_path / "coco/train2017/000000000001.jpg")
    (dialogue,) = sample.dialogues
    assert dialogue.turns == (("<image>\nWhat is it?", "A cat."), ("Which colour?", "Grey."))
    assert dialogue.spans == dialogue.masks == ()
    assert encode(dialogue.turns, load_tokenizer("tiny"), "brief").num_spans == 0


def test_the_placeholder_is_put_in_front_wherever_it_stood():
    expected = (("<image>\nWhat is it?", "A cat."), ("And?", "Yes."))
    for first, second in (
        ("<image>\nWhat is it?", "And?"),
        ("What is it? <image>", "And?"),
        ("What is it?", "<image> And?"),
        ("What is it?", "And?"),
    ):
        turns = [
            {"from": "human", "value": first},
            ANSWER,
            {"from": "human", "value": second},
            {"from": "gpt", "value": "Yes."},
        ]
        assert parse_entry(entry(turns=turns)) == expected


def test_first_words_of_the_model_and_a_last_question_are_dropped():
    last = {"from": "human", "value": "Thanks!"}
    assert parse_entry(entry(turns=(ANSWER, QUESTION, ANSWER, last))) == (("<image>\nWhat is it?", "A cat."),)
    system = {"from": "system", "value": "Be brief."}
    assert parse_entry(entry(turns=(system, QUESTION, ANSWER))) == (("<image>\nWhat is it?", "A cat."),)


def test_text_alone_has_no_image(tmp_path):
    plain = [{"from": "human", "value": "Who wrote Faust?"}, {"from": "gpt", "value": "Goethe."}]
    source = Vqa(write(tmp_path, [entry(0), entry(1, image=None, turns=plain)]))
    sample = source.sample(1, rng())
    assert sample.image is None
    assert sample.dialogues[0].turns == (("Who wrote Faust?", "Goethe."),)
    assert encode(sample.dialogues[0].turns, load_tokenizer("tiny"), "brief").image_position == -1


def test_several_image_folders_as_mix665k_names_them(tmp_path):
    images = ("coco/train2017/1.jpg", "gqa/images/1.jpg", "vg/VG_100K/2.jpg")
    file = "llava_dataset/llava_v1_5_mix665k.json"
    source = Vqa(write(tmp_path, [entry(k, name) for k, name in enumerate(images)], file, images), file=file)
    assert source.dataset == "llava_v1_5_mix665k"
    assert [source.sample(k, rng()).image for k in range(3)] == [str(tmp_path / "." / name) for name in images]
    assert not source.skipped
    apart = Vqa(tmp_path, file=file, images=("other", "."), dataset="mine")
    assert apart.sample(2, rng()).image == find_image([str(tmp_path)], images[2]) and apart.dataset == "mine"


BAD = {
    "image file missing": entry(image="2.jpg"),
    "image is not one path": entry(image=["a.jpg", "b.jpg"]),
    "roles do not alternate": entry(turns=(QUESTION, QUESTION, ANSWER)),
    "no answer": entry(turns=(QUESTION,)),
    "no list of conversations": {"id": 1, "image": "000000000001.jpg"},
    "turn without a text": entry(turns=(QUESTION, {"from": "gpt", "value": None})),
    "empty turn": entry(turns=({"from": "human", "value": "<image>\n"}, ANSWER)),
    "several images": entry(turns=({"from": "human", "value": "<image> <image> Same?"}, ANSWER)),
    "placeholder without an image": entry(image=None),
    "reserved token in a text": entry(turns=(QUESTION, {"from": "gpt", "value": "It ends </s> here."})),
}


def test_what_cannot_be_used_is_counted_by_reason_when_opened(tmp_path):
    source = Vqa(write(tmp_path, [*BAD.values(), entry(99), "text"]))
    assert source.skipped == dict.fromkeys(BAD, 1) | {"no list of conversations": 2}
    assert len(source) == 1 and source.sample(0, rng()).key == "099#0"
    key, reason, message = source.faults[0]
    assert (key, reason) == ("entry 0", "image file missing") and len(source.faults) == 11
    assert message == f"{tmp_path / FILE}: entry 0, image '2.jpg': image file missing"


def test_messages_of_one_reason_are_limited(tmp_path):
    source = Vqa(write(tmp_path, [entry(0), *[entry(k, image="2.jpg") for k in range(1200)]]))
    assert source.skipped == {"image file missing": 1200} and len(source.faults) == 1000


@pytest.mark.parametrize(
    "image", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "C:/secret.jpg", "..\\secret.jpg", "a\0b"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, image):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    root = write(tmp_path / "root", [entry(0), entry(1, image=image)])
    assert Vqa(root).skipped == {"image path leaves the folder": 1}


def test_a_missing_image_is_never_a_black_one(tmp_path):
    source = Vqa(write(tmp_path, [entry()]))
    (tmp_path / "coco/train2017/000000000001.jpg").unlink()
    with pytest.raises(UserError, match="'000000000001.jpg' has vanished"):
        source.sample(0, rng())
    with pytest.raises(UserError, match="no usable conversation \\(left out: 1 image file missing\\)"):
        Vqa(tmp_path)


def test_conversations_of_one_image_can_share_a_sample(tmp_path):
    names = [f"coco/train2017/{k}.jpg" for k in range(2)]
    asked = [entry(k, f"{k % 2}.jpg", ({"from": "human", "value": f"Question {k}?"}, ANSWER)) for k in range(6)]
    plain = [entry(k, None, ({"from": "human", "value": f"Question {k}?"}, ANSWER)) for k in (6, 7)]
    source = Vqa(write(tmp_path, asked + plain, images=names), per_image=2)
    assert len(source) == 4
    seen = set()
    for seed in range(20):
        sample = source.sample(0, rng(seed))
        questions = {dialogue.turns[0][0] for dialogue in sample.dialogues}
        assert len(questions) == 2 and sample.image.endswith("0.jpg")
        seen |= questions
    assert seen == {f"<image>\nQuestion {k}?" for k in (0, 2, 4)}
    assert [len(source.sample(k, rng()).dialogues) for k in (2, 3)] == [1, 1]


def test_the_same_generator_gives_the_same_sample_also_in_a_worker(tmp_path):
    source = Vqa(
        write(tmp_path, [entry(k, turns=({"from": "human", "value": f"Question {k}?"}, ANSWER)) for k in range(5)]), per_image=3
    )
    copy = pickle.loads(pickle.dumps(source))
    draws = [source.sample(0, rng(seed)) for seed in range(8)]
    assert draws == [copy.sample(0, rng(seed)) for seed in range(8)]
    assert len({draw.dialogues for draw in draws}) > 1


def test_a_stored_record_gives_the_same_samples(tmp_path):
    turns = [({"from": "human", "value": f"Question {k}?"}, ANSWER) for k in range(5)]
    source = Vqa(write(tmp_path, [entry(k, turns=turns[k]) for k in range(5)]), per_image=3)
    record = json.loads(json.dumps(source.record(0)))
    draw = pickle.loads(pickle.dumps(Vqa.drawing(per_image=3)))
    assert record["image"] and [draw(record, rng(k)) for k in range(8)] == [source.sample(0, rng(k)) for k in range(8)]
    assert source.index_files == (tmp_path / FILE,)


def test_the_opened_file_keeps_two_numbers_for_each_entry(tmp_path):
    source = Vqa(write(tmp_path, [entry(k) for k in range(2000)]))
    assert len(pickle.dumps(source)) < 40 * 2000


def test_wrong_use_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="llava_instruct_150k.json: no such file; put a JSON array of"):
        Vqa(tmp_path)
    write(tmp_path, [entry()])
    with pytest.raises(UserError, match="split 'val' does not exist"):
        Vqa(tmp_path, split="val")
    with pytest.raises(UserError, match="per_image is 0"):
        Vqa(tmp_path, per_image=0)
