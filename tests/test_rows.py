import numpy as np
import pytest
from PIL import Image
from source_fixtures import DATASETS, WORDS, FakeSource, Given, mixture_config, question_about

from data_pipelines.images import clip_view, load_image, sam_view
from data_pipelines.mask_sizes import shrink_mask
from data_pipelines.masks import encode_rle
from data_pipelines.record import NO_MASK, Dialogue, Sample
from data_pipelines.rows import RowBuilder
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.batch import Batch
from plum_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def picture(path, hw=(40, 60), seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)).save(path)
    return str(path)


def sample(path, dialogues, masks=(), family="semantic"):
    return Sample(family, "ade20k", "the record", path, tuple(dialogues), tuple(masks))


def box(hw, top, left, height, width):
    mask = np.zeros(hw, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def build(tokenizer, source, index=0, *, grounded=True, **data):
    builder = RowBuilder(mixture_config(**data), tokenizer)
    row, account = builder.build(source, index, np.random.default_rng(0), grounded=grounded, sample_id=5)
    return row, account.of(source.family, source.dataset), account


def pairs(row, tokenizer):
    """[{word: area of its mask, 0 without}] of the conversations."""
    found = []
    for c in range(len(row["tokens"])):
        words = {}
        for s in range(int(row["span_of_token"][c].max())):
            word = tokenizer.decode(row["tokens"][c][row["span_of_token"][c] == s + 1]).strip()
            mask = row["masks"][row["span_mask_index"][c, s]] if row["span_valid"][c, s] else np.zeros(1)
            words[word] = int(mask.sum())
        found.append(words)
    return found


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_family_gives_the_same_fields(dataset, tokenizer, tmp_path):
    source = FakeSource(tmp_path, dataset=dataset, per_image=2)
    row, counts, _ = build(tokenizer, source, 1, conversations=2)
    config = mixture_config(conversations=2)
    padding = RowBuilder(config, tokenizer).padding(grounded=True)
    assert row.keys() - {"sample_id"} == padding.keys() == set(Batch._fields) - {"sample_id"}
    for name in padding:
        if name != "patch_part":
            assert (row[name].shape, row[name].dtype) == (padding[name].shape, padding[name].dtype), name
    assert row["sample_id"] == 5 and row["loss_weight"].any() and counts["draws"] == 1
    image = load_image(source.folder / "1.png")
    np.testing.assert_array_equal(row["clip_pixels"], clip_view(image, 96, "pad"))
    np.testing.assert_array_equal(row["sam_pixels"], sam_view(image, 96)[0])
    assert tuple(row["original_hw"]) == source.sizes[1] and tuple(row["resized_hw"]) == sam_view(image, 96)[1]
    area = {word: source.mask(1, k).sum() for k, word in enumerate(WORDS)}
    wanted = {"vqa": 0, "explanatory": 4}.get(dataset, 2)
    owned = {word: size for words in pairs(row, tokenizer) for word, size in words.items()}
    assert len(owned) == row["mask_valid"].sum() == counts["masks"] == wanted
    assert owned == {word: area[word] for word in owned}


def test_places_that_sam_does_not_see_keep_labels_only(tokenizer, tmp_path):
    source = FakeSource(tmp_path, dataset="explanatory")
    full, bare = (build(tokenizer, source, grounded=grounded)[0] for grounded in (True, False))
    assert all(bare[name] is None for name in ("sam_pixels", "resized_hw", "original_hw", "masks", "mask_valid"))
    assert not bare["span_valid"].any() and full["span_valid"].sum() == 4
    for name in ("tokens", "bio", "span_of_token", "clip_pixels"):
        np.testing.assert_array_equal(full[name], bare[name])


def test_text_alone_has_black_views(tokenizer, tmp_path):
    for grounded in (True, False):
        row, counts, _ = build(tokenizer, FakeSource(tmp_path, dataset="vqa"), 0, grounded=grounded)
        assert row["image_position"].tolist() == [-1] and row["token_valid"].any() and not row["clip_pixels"].any()
        assert (row["sam_pixels"] is None) == (not grounded) and counts["draws"] == 1
        if grounded:
            assert row["resized_hw"].min() > 0 and row["original_hw"].min() > 0 and not row["sam_pixels"].any()


@pytest.mark.parametrize(
    "limits, reason, left",
    [
        ({"max_tokens": 20}, "lost spans: max_tokens", ["shade", "pole"]),
        ({"max_spans": 2}, "lost spans: max_spans", ["shade", "pole"]),
        ({"max_masks": 1}, "lost spans: max_masks", ["shade"]),
    ],
)
def test_spans_without_room_go_with_their_masks_and_the_rest_stay_paired(tokenizer, tmp_path, limits, reason, left):
    hw, words = (40, 60), ["shade", "pole", "base"]
    masks = [box(hw, 1, 1, 5, 4 + k) for k in range(3)]
    dialogue = question_about(words, [2, 0, 1])  # neither in the order of the masks
    source = Given(sample(picture(tmp_path / "a.png"), [dialogue], masks))
    row, counts, _ = build(tokenizer, source, **limits)
    area = {"shade": masks[2].sum(), "pole": masks[0].sum(), "base": masks[1].sum()}
    assert pairs(row, tokenizer) == [{word: area[word] for word in left}]
    assert ((row["bio"] > 0) == (row["span_of_token"] > 0)).all()
    assert counts[reason] == 3 - len(left) and counts["spans"] == len(left)
    assert (counts["tokens"] > 0) == ("max_tokens" in limits)


def test_what_has_no_room_is_counted(tokenizer, tmp_path):
    path, hw = picture(tmp_path / "a.png"), (40, 60)
    empty, full = np.zeros(hw, np.uint8), np.ones(hw, np.uint8)
    dialogues = [question_about(["lamp", "base"], [0, NO_MASK]), question_about(["pole"], [1]), question_about(["shade"], [1])]
    row, counts, _ = build(tokenizer, Given(sample(path, dialogues, [empty, full])), conversations=2)
    assert pairs(row, tokenizer) == [{"lamp": 0, "base": 0}, {"pole": 2400}]
    assert counts == {
        "draws": 1, "conversations": 2, "spans": 3, "masks": 1, "lost masks: empty": 1,
        "lost conversations: max_conversations": 1,
    }  # fmt: skip
    long = Dialogue((("<image>\nWhat is " + "this " * 60, "It is a lamp."),))
    row, counts, _ = build(tokenizer, Given(sample(path, [long])))
    assert counts["lost conversations: no token of the answer fits"] == 1 and not row["loss_weight"].any()
    assert row["token_valid"].all() and counts["tokens"] > 0


@pytest.mark.parametrize("hw, canvas, wanted", [((400, 600), (64, 64), (43, 64)), ((90, 40), (64, 64), (64, 28))])
def test_images_larger_than_the_canvas_are_shrunk(tokenizer, tmp_path, hw, canvas, wanted):
    path = picture(tmp_path / "a.png", hw)
    mask = box(hw, hw[0] // 4, 0, hw[0] // 2, hw[1] // 2)
    row, counts, _ = build(tokenizer, Given(sample(path, [question_about(["lamp"], [0])], [encode_rle(mask)])), canvas=canvas)
    assert tuple(row["original_hw"]) == wanted and counts["shrunk"] == 1
    target = row["masks"][0]
    assert abs(target.sum() - wanted[0] * wanted[1] / 4) < sum(wanted)
    assert not target[wanted[0] :].any() and not target[:, wanted[1] :].any() and set(np.unique(target)) == {0, 1}
    image = load_image(path)
    np.testing.assert_array_equal(row["sam_pixels"], sam_view(image, 96)[0])  # of the whole image
    np.testing.assert_array_equal(row["clip_pixels"], clip_view(image, 96, "pad"))


def test_shrinking_takes_the_nearest_pixel():
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(shrink_mask(mask, (2, 2)), [[7, 10], [19, 22]])
    assert shrink_mask(mask, (4, 6)) is mask


def test_masks_of_several_values_become_zeros_and_ones(tokenizer, tmp_path):
    mask = box((40, 60), 3, 3, 5, 5) * 3
    row, _, _ = build(tokenizer, Given(sample(picture(tmp_path / "a.png"), [question_about(["lamp"], [0])], [mask])))
    assert row["masks"].sum() == 25 and row["masks"].max() == 1


def test_bad_records_are_padding_and_counted(tokenizer, tmp_path):
    path, answer = picture(tmp_path / "a.png"), question_about(["lamp"], [0])
    (tmp_path / "b.png").write_bytes(b"no image")
    bad = {
        "record": UserError("file: wrong; make it again"),
        "image": sample(str(tmp_path / "b.png"), [answer], [np.ones((40, 60), np.uint8)]),
        "mask": sample(path, [answer], [np.ones((40, 61), np.uint8)]),
        "text": sample(path, [Dialogue((("<image>\nWhat?", "It ends.</s> Or not."),))]),
    }
    source = Given(*bad.values())
    for index, reason in enumerate(bad):
        for grounded in (True, False) if reason != "mask" else (True,):  # where SAM sees nothing no mask is read
            row, counts, account = build(tokenizer, source, index, grounded=grounded)
            assert counts == {"draws": 1, f"skipped: {reason}": 1}
            assert not any(row[name].any() for name in ("token_valid", "loss_weight", "bio", "span_of_token", "span_valid"))
            assert (row["image_position"] == -1).all() and row["sample_id"] == 5
            if grounded:
                assert not row["mask_valid"].any() and not row["masks"].any() and row["original_hw"].min() > 0
            (message,) = account.messages["ade20k", reason]
            assert message.startswith("record 0: file" if reason == "record" else "the record: ")


def test_pairing_by_rank(tokenizer, tmp_path):
    """M 6, D10: with the reference's pairing the k-th span owns the k-th mask of the image."""
    masks = [box((40, 60), 1, 1, 5, 4 + k) for k in range(3)]
    dialogue = question_about(["lamp", "pole"], [NO_MASK, 2])
    source = Given(sample(picture(tmp_path / "a.png"), [dialogue, question_about(["base"], [0])], masks))
    row, _, _ = build(tokenizer, source, conversations=2, span_pairing="rank")
    assert row["span_mask_index"][:, :2].tolist() == [[0, 0], [1, 0]]  # two conversations and two masks: one for each


def test_a_prompt_without_room_for_the_image_is_refused(tokenizer):
    with pytest.raises(UserError, match="cuts the image off"):
        RowBuilder(mixture_config(max_tokens=3), tokenizer)
