import json

import numpy as np
import pytest
from fixtures_partonomy import BOXES, box_mask, question, write_entries, write_folder
from PIL import Image

from configs.tiny import get_config
from data_pipelines.build import build
from data_pipelines.explanatory import Explanatory
from data_pipelines.images import clip_view, load_image, sam_view
from data_pipelines.partonomy.records import QUESTION_TYPES
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.pipeline import batches, open_data
from data_pipelines.rows import RowBuilder, rank_slot
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def tiny(**data):
    config = get_config()
    config.data.update({"template": "llava_v1", "max_tokens": 120, **data})
    return config


def single(folder, **changes):
    """A folder with one image and one identification question."""
    (folder / "images").mkdir()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "images/a.png")
    write_entries(folder, [{**question("images/a.png", (40, 60)), **changes}])
    return folder


def test_one_item_per_image(folder, tokenizer):
    source = PartonomySource(folder, "train", tiny(), tokenizer)
    assert len(source) == 4
    assert [record.image for record in source.records] == [f"images/train_{i}.png" for i in range(4)]
    assert [len(record.questions) for record in source.records] == [3] * 4
    assert source.parts == ["base", "lamp shade", "lid", "pole"]
    assert source[0].instances == (0, 0, 0)


def test_a_grounded_row(folder, tokenizer):
    config = tiny()
    source = PartonomySource(folder, "train", config, tokenizer)
    record = source[2]
    row = source.row(record, (0,), grounded=True)[0]
    image = load_image(folder / record.image)
    hw = image.shape[:2]
    np.testing.assert_array_equal(row["sam_pixels"], sam_view(image, 96)[0])
    np.testing.assert_array_equal(row["clip_pixels"], clip_view(image, 96, "pad"))
    assert tuple(row["original_hw"]) == hw
    assert tuple(row["resized_hw"]) == sam_view(image, 96)[1]
    assert row["sample_id"] == 2
    for slot, part in enumerate(("base", "lamp shade", "pole"), 1):
        tokens = row["tokens"][0][row["span_of_token"][0] == slot]
        assert tokenizer.decode(tokens).strip() == part
        assert row["span_valid"][0, slot - 1]
        target = row["masks"][row["span_mask_index"][0, slot - 1]]
        np.testing.assert_array_equal(target[: hw[0], : hw[1]], box_mask(hw, BOXES[part]))
        assert target.sum() == box_mask(hw, BOXES[part]).sum()
    assert row["mask_valid"].tolist() == [True] * 3 + [False] * 5
    assert row["span_valid"].sum() == 3
    assert row["patch_part"].shape == (64,)
    assert set(row["patch_part"].tolist()) <= {-1, 0, 1, 2, 4}
    centre = (int(0.8 * hw[0] * 96 / max(hw)) // 12, int(0.5 * hw[1] * 96 / max(hw)) // 12)
    assert row["patch_part"].reshape(8, 8)[centre] == 1  # base


def test_a_row_without_masks_keeps_its_labels(folder, tokenizer):
    source = PartonomySource(folder, "train", tiny(), tokenizer)
    full, bare = (source.row(source[0], (0,), grounded=grounded)[0] for grounded in (True, False))
    for name in ("tokens", "bio", "span_of_token", "loss_weight", "patch_part", "clip_pixels"):
        np.testing.assert_array_equal(full[name], bare[name])
    assert not bare["span_valid"].any()
    assert all(bare[name] is None for name in ("sam_pixels", "resized_hw", "original_hw", "masks", "mask_valid"))


def test_no_patch_targets_without_their_loss(folder, tokenizer):
    config = tiny()
    config.loss.patch = 0.0
    source = PartonomySource(folder, "train", config, tokenizer)
    assert source.row(source[0], (0,), grounded=True)[0]["patch_part"] is None


def test_two_turn_questions_train_both_answers(folder, tokenizer):
    source = PartonomySource(folder, "train", tiny(), tokenizer)
    row = source.row(source[0], (2,), grounded=True)[0]
    answers = tokenizer.decode(row["tokens"][0][row["loss_weight"][0] > 0])
    assert "lamp shade, and pole.</s>" in answers
    assert "It is a desk lamp.</s>" in answers
    assert row["span_valid"].sum() == 3
    assert row["span_of_token"].max() == 3


def test_questions_are_drawn_by_weight(folder, tokenizer):
    weights = {"identification_with_label": 3.0, "positive_with_label": 1.0, "part_to_whole": 0.0}
    config = get_config()
    config.data.question_weights = weights
    source = PartonomySource(folder, "train", config, tokenizer)
    rng = np.random.default_rng(0)
    drawn = [source.choose(source[1], rng)[1][0] for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert 0.68 < np.mean(np.array(drawn) == 0) < 0.82
    config.data.question_weights = {"default": 0.0, "identification_with_label": 0.0}
    with pytest.raises(UserError, match="question_weights"):
        PartonomySource(folder, "train", config, tokenizer)


def test_several_conversations_share_masks(folder, tokenizer):
    source = PartonomySource(folder, "train", tiny(conversations=4), tokenizer)
    row = source.example(source[1], np.random.default_rng(0))
    assert row["tokens"].shape == (4, 120)
    assert row["token_valid"].any(1).tolist() == [True, True, True, False]  # three questions
    assert row["image_position"].tolist()[3] == -1
    assert row["mask_valid"].sum() == 3
    assert row["span_valid"].sum() == 8
    owners = {}
    for c in range(3):
        for s in np.flatnonzero(row["span_valid"][c]):
            word = tokenizer.decode(row["tokens"][c][row["span_of_token"][c] == s + 1]).strip()
            owners.setdefault(word, set()).add(int(row["span_mask_index"][c, s]))
    assert all(len(slots) == 1 for slots in owners.values())
    assert len(owners) == 3


def test_instances_of_one_image_have_their_own_masks(tmp_path, tokenizer):
    single(tmp_path)
    first, second = question("images/a.png", (40, 60)), question("images/a.png", (40, 60), "identification")
    second["segmentations"]["base"] = second["segmentations"]["lamp shade"]
    write_entries(tmp_path, [first, second])
    source = PartonomySource(tmp_path, "train", tiny(conversations=2), tokenizer)
    assert source[0].instances == (0, 1)
    row = source.row(source[0], (0, 1), grounded=True)[0]
    assert row["mask_valid"].sum() == 6
    assert not np.array_equal(*row["masks"][row["span_mask_index"][:, 0]])


@pytest.mark.parametrize(
    ("sizes", "reason", "left"),
    [({"max_spans": 2}, "max_spans", 2), ({"max_masks": 1}, "max_masks", 1), ({"max_tokens": 68}, "max_tokens", 1)],
)
def test_spans_without_room_are_dropped_whole_and_counted(folder, tokenizer, sizes, reason, left):
    source = PartonomySource(folder, "train", tiny(**sizes), tokenizer)
    for grounded in (True, False, True):
        row, counts = source.row(source[0], (0,), grounded=grounded)
        assert row["span_of_token"].max() == left
        assert (row["bio"] == 1).sum() == left
        assert ((row["bio"] > 0) == (row["span_of_token"] > 0)).all()
        assert row["span_valid"].sum() == (left if grounded else 0)
        lost = {f"lost spans: {reason}": 3 - left, "conversations": 1, "spans": left}
        lost |= {"tokens": counts["tokens"]} if reason == "max_tokens" else {}
        assert counts == (lost | {"masks": left} if grounded else lost)
    assert row["mask_valid"].sum() == left


def test_masks_of_a_larger_image_are_shrunk_onto_the_canvas(tmp_path, tokenizer):
    """As in a mixture; the views are those of the whole image."""
    single(tmp_path)
    config = tiny(canvas=(32, 24))
    source = PartonomySource(tmp_path, "train", config, tokenizer)
    row, counts = source.row(source[0], (0,), grounded=True)
    assert counts == {"conversations": 1, "spans": 3, "masks": 3, "shrunk": 1}
    np.testing.assert_array_equal(row["original_hw"], (16, 24))  # of 40 x 60
    np.testing.assert_array_equal(row["resized_hw"], (64, 96))
    rows, columns = np.arange(16) * 5 // 2 + 1, np.arange(24) * 5 // 2 + 1  # the centres
    for slot, part in enumerate(("base", "lamp shade", "pole")):
        whole = box_mask((40, 60), BOXES[part])
        np.testing.assert_array_equal(row["masks"][slot, :16, :24], whole[rows[:, None], columns])
        assert not row["masks"][slot, 16:].any()
    assert {0, 1, 2} < set(row["patch_part"].tolist())
    mixed, account = RowBuilder(config, tokenizer).build(
        Explanatory(tmp_path), 0, np.random.default_rng(0), grounded=True, sample_id=0
    )
    for name in ("masks", "mask_valid", "original_hw", "sam_pixels", "clip_pixels", "span_mask_index", "tokens"):
        np.testing.assert_array_equal(row[name], mixed[name])
    assert dict(account.counts["explanatory", "partonomy"]) == {"draws": 1, **counts}


@pytest.mark.parametrize("at_random", [True, False])
def test_a_build_gives_the_rows_of_its_folder(tmp_path, tokenizer, at_random):
    write_folder(tmp_path / "raw", images=5)
    (tmp_path / "raw/dataset.json").unlink()  # its parts are those of the questions then, in both
    options = {"question_types": list(QUESTION_TYPES), "sample_one_question_per_image": at_random}
    built = build("explanatory", tmp_path / "raw", tmp_path / "built", options=options, log=lambda line: None)
    streams = []
    for folder in (tmp_path / "raw", tmp_path / "built", built):
        config = tiny(folder=str(folder), global_batch=8, conversations=2)
        source = open_data(config, tokenizer)
        assert source.parts == ["base", "lamp shade", "pole"]
        streams.append(batches(config, tokenizer, source=source))
    assert source.path == built / "build.json"
    for _ in range(4):
        raw, *others = (next(stream) for stream in streams)
        for other in others:
            for name, one, two in zip(raw._fields, raw, other, strict=True):
                np.testing.assert_array_equal(one, two, err_msg=name)
    assert streams[0].account == streams[1].account


def test_wrong_builds(tmp_path, tokenizer):
    write_folder(tmp_path / "raw")
    built = build("explanatory", tmp_path / "raw", tmp_path / "built", log=lambda line: None)
    with pytest.raises(UserError, match="has no split 'val', only train"):
        PartonomySource(built, "val", tiny(), tokenizer)
    about = json.loads((built / "build.json").read_text())
    about["splits"]["train"] |= {"source": "ade20k", "family": "semantic"}
    (built / "build.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="is a build of semantic, not of questions; train on it with config.data.sources"):
        PartonomySource(built, "train", tiny(), tokenizer)


def test_an_empty_mask_is_no_target(tmp_path, tokenizer):
    entry = question("images/a.png", (40, 60))
    segmentations = {**entry["segmentations"], "base": [{"size": [40, 60], "counts": [2400]}]}
    source = PartonomySource(single(tmp_path, segmentations=segmentations), "train", tiny(), tokenizer)
    row = source.row(source[0], (0,), grounded=True)[0]
    assert row["span_valid"][0, :3].tolist() == [False, True, True]
    assert row["mask_valid"][:3].tolist() == [False, True, True]
    assert row["span_of_token"].max() == 3


def test_cache_changes_nothing(folder, tokenizer):
    cached, fresh = (PartonomySource(folder, "train", tiny(cache=cache), tokenizer) for cache in (True, False))
    for _ in range(2):
        for index in range(4):
            rows = [source.example(source[index], np.random.default_rng(index)) for source in (cached, fresh)]
            for name in rows[0]:
                np.testing.assert_array_equal(rows[0][name], rows[1][name])
    assert not fresh._cache


def test_bad_folders(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no such question file"):
        PartonomySource(tmp_path, "train", tiny(), tokenizer)
    single(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"parts": ["base", "pole"]}), encoding="utf-8")
    with pytest.raises(UserError, match="'lamp shade' is not among the parts"):
        PartonomySource(tmp_path, "train", tiny(), tokenizer)
    (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no readable list of parts"):
        PartonomySource(tmp_path, "train", tiny(), tokenizer)


def test_answers_must_list_their_parts(tmp_path, tokenizer):
    with pytest.raises(UserError, match="does not end in the list"):
        PartonomySource(single(tmp_path, answer_choices=["It has parts."] * 5), "train", tiny(), tokenizer)


def test_masks_of_another_size(tmp_path, tokenizer):
    single(tmp_path)
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(tmp_path / "images/a.png")
    source = PartonomySource(tmp_path, "train", tiny(), tokenizer)
    with pytest.raises(UserError, match="mask of 'base' is 40 x 60, image is 60 x 40"):
        source.row(source[0], (0,), grounded=True)


def test_spans_paired_by_rank_own_the_masks_of_the_reference(folder, tokenizer):
    """M 6, D10: span k owns mask k of the image, whatever it names; as many conversations as masks: one mask for each."""

    def owners(chosen, pairing, **data):
        source = PartonomySource(folder, "train", tiny(conversations=3, span_pairing=pairing, **data), tokenizer)
        row = source.row(source[1], chosen, grounded=True)[0]
        assert row["mask_valid"].sum() == min(3, data.get("max_masks", 3))  # base, lamp shade, pole
        return [row["span_mask_index"][c][row["span_valid"][c]].tolist() for c in range(len(chosen))]

    assert owners((0,), "name") == owners((0,), "rank") == [[0, 1, 2]]
    assert owners((0, 1), "name") == [[0, 1, 2], [0, 2]]  # the second question is about base and pole
    assert owners((0, 1), "rank") == [[0, 1, 2], [0, 1]]  # its pole is trained on the mask of the lamp shade
    assert owners((0, 1, 2), "name") == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert owners((0, 1, 2), "rank") == [[0, 0, 0], [1, 1], [2, 2, 2]]  # three conversations, three masks


def test_a_rank_without_a_mask_has_no_target():
    assert [rank_slot(0, rank, 2, 3) for rank in range(4)] == [0, 1, 2, None]
    assert [rank_slot(1, rank, 2, 2) for rank in range(4)] == [1] * 4


def test_the_flavour_of_the_tokenizer_reaches_the_rows(folder, tokenizer):
    for flavour, words in (("fast", ["▁", "<im_start>"]), ("slow", [":", "<im_start>"])):
        source = PartonomySource(folder, "train", tiny(tokenizer_flavour=flavour), tokenizer)
        row = source.row(source[0], (0,), grounded=False)[0]
        at = row["image_position"][0]
        assert tokenizer.convert_ids_to_tokens(row["tokens"][0][at - 2 : at].tolist()) == words
