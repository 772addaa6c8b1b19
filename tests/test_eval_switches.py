"""The switches of scoring, through the evaluation of a folder: given spans by search, what the summary is about."""

import json

import numpy as np
import pytest

from plum_jax import coco, evaluate
from plum_jax.evaluation import run_lengths
from plum_jax.inference import Model
from tests import eval_fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions about a loader that bears the name of its first part."""
    path = tmp_path_factory.mktemp("data")
    entries = eval_fixtures.write_folder(path, types=("identification_with_label",))
    for entry in entries:
        label = f"{min(entry['segmentations'])} loader"
        entry["question"] = entry["question"].replace("cart", label)
        entry["answer_choices"] = [text.replace("cart", label) for text in entry["answer_choices"]]
    eval_fixtures.write_questions(path, entries)
    return path


def run(folder, out, **switches):
    """-> (results.json, records)."""
    loaded = eval_fixtures.loaded()
    config = loaded.config.copy_and_resolve_references()
    config.eval.update(switches)
    model = Model(type(loaded)(**{**vars(loaded), "config": config}))
    protocols = ("published", "middle", "end_to_end")
    results = evaluate.evaluate_folder(model, folder, "test", out, log=None, protocols=protocols)
    return results, [json.loads(line) for line in (out / "instances.jsonl").read_text().splitlines()]


def test_a_name_inside_the_object_shifts_the_pairs(folder, tmp_path):
    plain = run(folder, tmp_path / "plain")[1]
    results, found = run(folder, tmp_path / "found", all_span_occurrences=True)
    assert results["settings"]["all_span_occurrences"] is True
    for record, before in zip(found, plain, strict=True):
        parts, spans = record["gt_parts"], record["published"]["spans"]
        assert [s["part"] for s in before["published"]["spans"]] == parts
        assert [s["phrase"] for s in spans] == [s["part"] for s in spans] == [parts[0], *parts]
        assert spans[0]["char"][0] < spans[1]["char"][0] and spans[-1]["iou"] is None
        masks = [s["mask"] for s in spans]
        shifted = np.diagonal(run_lengths.iou_matrix(masks, record["gt_masks"]))  # the second part meets the third mask
        assert record["published"]["ious"]["paired"] == pytest.approx(shifted)
        assert coco.decode(masks[0]).shape == coco.decode(record["gt_masks"][0]).shape
        assert record["end_to_end"]["pair_ious"] == pytest.approx(before["end_to_end"]["pair_ious"])


def test_the_summary_is_about_what_the_switches_say(folder, tmp_path):
    ours = run(folder, tmp_path / "ours")[0]
    theirs = run(folder, tmp_path / "theirs", grounding="gt_answer_gt_spans", match="paired")[0]
    middle = run(folder, tmp_path / "middle", grounding="gt_answer_pred_spans", match="hungarian")[0]
    kind = "identification_with_label"
    for results, protocol, metric in (
        (ours, "end_to_end", "gmIoU-paired_strict"),
        (theirs, "published", "gmIoU-paired"),
        (middle, "middle", "gmIoU-hungarian"),
    ):
        group = results["protocols"][protocol][kind]
        assert results["summary"]["gmiou_macro"] == group["mask_macro"][metric]
        assert results["summary"]["gmiou_micro"] == group["mask_micro"][metric]
    assert theirs["summary"]["gmiou_macro"] == theirs["summary"]["gmiou_macro_published"]
    assert ours["protocols"] == theirs["protocols"] == middle["protocols"]  # all of them, side by side
    assert theirs["settings"]["grounding"] == "gt_answer_gt_spans" and theirs["settings"]["match"] == "paired"
