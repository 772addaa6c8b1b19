"""A tiny PARTONOMY folder for tests: a few drawn pictures with run-length and polygon masks, all kinds of questions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.conversation import join_parts
from data_pipelines.masks import encode_rle

BOXES = {"base": (0.1, 0.7, 0.9, 0.95), "lamp shade": (0.3, 0.05, 0.7, 0.4), "pole": (0.45, 0.4, 0.55, 0.7)}
WRONG = [["base"], ["base", "lid"], ["lid", "pole"], ["lid"]]


def box_mask(hw, box):
    """uint8[H, W]: ones in a box of relative corners (x0, y0, x1, y1)."""
    mask = np.zeros(hw, np.uint8)
    mask[int(box[1] * hw[0]) : int(box[3] * hw[0]), int(box[0] * hw[1]) : int(box[2] * hw[1])] = 1
    return mask


def question(image_path, hw, question_type="identification_with_label", parts=("base", "lamp shade", "pole"), correct=0):
    """One entry of a question file about a desk lamp, with the correct choice at index `correct`."""
    label = "object" if question_type in ("identification", "part_to_whole") else "desk lamp"
    extra = {"positive_with_label": " in common with a floor lamp"}.get(question_type, "")
    choices = [list(names) for names in WRONG]
    choices.insert(correct, list(parts))
    x0, y0, x1, y1 = (int(v * side) for v, side in zip(BOXES["pole"], (hw[1], hw[0], hw[1], hw[0]), strict=True))
    polygon = [x0, y0, x1 - 1, y0, x1 - 1, y1 - 1, x0, y1 - 1]
    segmentations = {name: [encode_rle(box_mask(hw, BOXES[name]))] for name in ("base", "lamp shade")}
    segmentations["pole"] = [{"segmentation": {"size": list(hw), "polygon": polygon}}]
    entry = {
        "image_path": image_path,
        "image_label": "desk lamp",
        "question": f"What visible parts does the {label} in the image have{extra}?",
        "question_type": question_type,
        "answer_choices": [
            f"The {label} in the image has the following visible parts{extra}: {join_parts(names)}." for names in choices
        ],
        "answer_types": ["correct" if i == correct else "incorrect" for i in range(5)],
        "answer_parts": choices,
        "segmentations": segmentations,
        "object_question": None,
        "object_answer_choices": None,
        "object_answer_types": None,
        "object_answer_classes": None,
    }
    if question_type in ("part_to_whole", "whole_to_part"):
        classes = ["chair", "desk lamp", "mug", "car", "table"]
        entry["object_question"] = "What is the object in the image?"
        entry["object_answer_choices"] = [f"It is a {name}." for name in classes]
        entry["object_answer_types"] = ["correct" if name == "desk lamp" else "incorrect" for name in classes]
        entry["object_answer_classes"] = classes
    return entry


def write_folder(folder, *, images=4, split="train", seed=0):
    """Writes images/, partonomy_qa_pairs_{split}.json and dataset.json. Returns the list of entries.

    Every image has identification_with_label, positive_with_label and part_to_whole questions; sizes are all different.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng, entries = np.random.default_rng(seed), []
    for i in range(images):
        hw = (40 + 8 * (i % 5), 72 - 6 * (i % 7))
        pixels = rng.integers(0, 256, (*hw, 3), np.uint8)
        for box in BOXES.values():
            pixels[box_mask(hw, box) > 0] = rng.integers(0, 256, 3)
        path = f"images/{split}_{i}.png"
        Image.fromarray(pixels).save(folder / path)
        entries.append(question(path, hw, correct=i % 5))
        entries.append(question(path, hw, "positive_with_label", parts=("base", "pole"), correct=2))
        entries.append(question(path, hw, "part_to_whole"))
    write_entries(folder, entries, split)
    about = {"seed": seed, "parts": ["lid", *BOXES], "objects": ["desk lamp"], "splits": {split: len(entries)}}
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return entries


def write_entries(folder, entries, split="train"):
    (Path(folder) / f"partonomy_qa_pairs_{split}.json").write_text(json.dumps(entries), encoding="utf-8")
