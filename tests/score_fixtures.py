"""Prediction files for the questions of `eval_fixtures.write_folder`, as another model would write them."""

import json

import numpy as np

from data_pipelines.masks import decode_segmentation
from plum_jax import coco


def target(entry, part):
    """bool[H, W] of a part of a question."""
    return np.any([decode_segmentation(s) for s in entry["segmentations"][part]], axis=0)


def shifted(mask, rows):
    return np.roll(mask, rows, axis=0)


def correct_parts(entry):
    return entry["answer_parts"][entry["answer_types"].index("correct")]


def perfect(entry, index, **fields):
    """The documented form: the right choice and the true mask of each of its parts."""
    spans = [{"phrase": part, "mask": coco.encode(target(entry, part))} for part in correct_parts(entry)]
    made = {"index": index, "answer": {"choice": entry["answer_types"].index("correct"), "spans": spans}, **fields}
    if entry["object_question"]:
        made["predicted"] = {"object": entry["object_answer_types"].index("correct")}
    return made


def reference_entry(entry, choice, *, rows=1, keep=None):
    """A prediction of the published code: `choice` is chosen, true masks moved by some rows, the first `keep` of them."""
    correct = entry["answer_types"].index("correct")
    parts = entry["answer_parts"][correct]
    masks = [target(entry, part) for part in parts]
    found = [shifted(mask, rows) for mask in masks][:keep]
    rle = lambda mask, label: {**coco.encode(mask), "label": label}  # noqa: E731
    asked = [entry["question"], entry["object_question"]]
    asked = asked[::-1] if entry["question_type"] == "whole_to_part" else asked
    objects = entry["object_answer_choices"]
    return {
        "image_path": f"/home/someone/partonomy/{entry['image_path']}",
        "question_type": entry["question_type"],
        "questions": [text for text in asked if text],
        "parts_answer_choices": entry["answer_choices"],
        "gt_parts_answer": entry["answer_choices"][correct],
        "predicted_parts_answer": entry["answer_choices"][choice],
        "gt_parts": parts,
        "predicted_parts": entry["answer_parts"][choice],
        "gt_masks": [rle(mask, part) for mask, part in zip(masks, parts, strict=True)],
        "predicted_masks": [rle(mask, part) for mask, part in zip(found, parts, strict=False)],
        "mask_confidences": None,
        "object_answer_choices": objects,
        "gt_object_answer": objects and objects[entry["object_answer_types"].index("correct")],
        "predicted_object_answer": objects and objects[0],
        "gt_object": objects and entry["image_label"],
        "predicted_object": objects and entry["object_answer_classes"][0],
        "metrics": {"mc_part_text": {"is_correct": choice == correct}},
    }


def write(path, value):
    """A prediction file: JSON lines for a list and a name that ends in .jsonl, else JSON."""
    text = "".join(json.dumps(item) + "\n" for item in value) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return path
