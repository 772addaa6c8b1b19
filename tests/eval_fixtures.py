"""A random model with the shipped tokenizer, and a question folder small enough to look at: what evaluation tests share."""

import functools
import json
from types import SimpleNamespace

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from data_pipelines.conversation import join_parts
from data_pipelines.tokenizer import load_tokenizer
from plum_jax import coco
from plum_jax.models.plum import PlumConfig, init_params
from tests.model_fixtures import small_config

PARTS = ("wheel", "door", "handle", "lid")


def config():
    c = small_config()
    c.model.llama.vocab_size = 1024
    c.data.update(template="brief", clip_view="pad", max_tokens=72)
    c.tokenizer = "tiny"
    c.eval = dict(mc_score="answer_mean", min_score=0.0, max_new_tokens=12)
    return c


def roughen(params, seed):
    """Norm gains and biases moved off their neutral values; adapters stay zero. Spans and masks come out of it."""
    rng = np.random.default_rng(seed)
    flat = flatten_dict(params, sep="/")
    noise = {k: 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in sorted(flat.items())}
    rough = {k: v if "lora_b" in k else np.asarray(v) + noise[k] for k, v in flat.items()}
    return unflatten_dict(rough, sep="/")


@functools.cache
def loaded(seed=0):
    """What loading.load_model returns, with random parameters: words, tags and masks without sense."""
    c = config()
    params = roughen(init_params(PlumConfig.from_dict(c.model.to_dict()), seed), seed)
    return SimpleNamespace(config=c, params=params, tokenizer=load_tokenizer("tiny"), path="", sha256="random", step=0)


def part_masks(hw, parts, rng):
    """{part: bool[H, W]}: one rectangle per part."""
    masks = {}
    for i, part in enumerate(parts):
        mask = np.zeros(hw, bool)
        top, left = rng.integers(0, hw[0] // 2), i * hw[1] // len(parts)
        mask[top : top + hw[0] // 3, left : left + hw[1] // len(parts)] = True
        masks[part] = mask
    return masks


def question(path, kind, masks, rng, label="cart"):
    """One entry of a question file; the correct choice is at a random place."""
    parts = sorted(masks)
    lists = [parts, parts[:1], parts[1:], [*parts, "tail"], ["tail", "wing"]]
    name = "object" if kind == "part_to_whole" else label
    order = rng.permutation(5)
    entry = {
        "image_path": path, "image_label": label, "question_type": kind,
        "question": f"What visible parts does the {name} in the image have?",
        "answer_choices": [f"The {name} in the image has the following visible parts: {join_parts(lists[i])}." for i in order],
        "answer_types": ["correct" if i == 0 else "incorrect" for i in order],
        "answer_parts": [lists[i] for i in order],
        "segmentations": {part: [coco.encode(mask)] for part, mask in masks.items()},
        "object_question": None, "object_answer_choices": None, "object_answer_types": None, "object_answer_classes": None,
    }  # fmt: skip
    if kind in ("part_to_whole", "whole_to_part"):
        classes = [label, "lamp", "dog", "chair", "truck"]
        entry.update(
            object_question="What is the object in the image?",
            object_answer_choices=[f"It is a {classes[i]}." for i in order],
            object_answer_types=["correct" if i == 0 else "incorrect" for i in order],
            object_answer_classes=[classes[i] for i in order],
        )
    return entry


def write_folder(
    folder, sizes=((20, 31), (24, 16), (33, 27)), types=("identification_with_label", "part_to_whole", "whole_to_part")
):
    """Images and partonomy_qa_pairs_test.json under `folder`; returns the entries."""
    rng, entries = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, hw in enumerate(sizes):
        masks = part_masks(hw, PARTS[: 2 + i % 3], rng)
        pixels = rng.integers(0, 255, (*hw, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        entries += [question(f"images/{i}.png", kind, masks, rng) for kind in types]
    write_questions(folder, entries)
    return entries


def write_questions(folder, entries, split="test"):
    (folder / f"partonomy_qa_pairs_{split}.json").write_text(json.dumps(entries), encoding="utf-8")
