"""Run and evaluation folders as the commands write them, of a made-up model, and a parser of pages."""

import csv
import html.parser
import json

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.masks import encode_rle
from plum_jax.evaluation import partonomy
from plum_jax.evaluation.baselines import NAMES as BASELINES
from plum_jax.evaluation.masks import STRATEGIES

PARTS = ("base", "pole", "shade", "switch", "cord", "left wheel")
TYPES = ("identification_with_label", "positive_with_label", "negative_with_label", "part_to_whole", "whole_to_part")


def list_of(parts):
    return ", ".join(parts[:-1] + [f"and {parts[-1]}"]) if len(parts) > 1 else parts[0]


def draw_scene(path, rng):
    """A picture of one to four coloured parts -> {part: mask bool[H, W]}. Some pictures are not square."""
    width, height = (128, 96) if rng.random() < 0.3 else (112, 112)
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in rng.integers(170, 250, 3)))
    masks = {}
    for name in sorted(rng.choice(PARTS, rng.integers(1, 5), replace=False)):
        x, y, w, h = rng.integers(4, width - 50), rng.integers(4, height - 50), rng.integers(9, 46), rng.integers(9, 46)
        box = [int(v) for v in (x, y, x + w, y + h)]
        mask = Image.new("1", (width, height))
        shape = "ellipse" if rng.random() < 0.5 else "rectangle"
        getattr(ImageDraw.Draw(mask), shape)(box, fill=1)
        getattr(ImageDraw.Draw(picture), shape)(box, fill=tuple(int(c) for c in rng.integers(20, 220, 3)), outline="black")
        masks[str(name)] = np.asarray(mask)
    picture.save(path)
    return masks


def make_instance(index, image_path, masks, rng, skill):
    """One line of instances.jsonl: a model of `skill` (0 to 1) answers a question about a scene."""
    gt = list(masks)
    kind = TYPES[index % len(TYPES)]
    lists = [gt]
    while len(lists) < 5:
        wrong = sorted(str(p) for p in rng.choice(PARTS, rng.integers(1, 5), replace=False))
        lists += [wrong] if wrong not in lists else []
    order = rng.permutation(5)
    lists, correct = [lists[i] for i in order], int(np.flatnonzero(order == 0)[0])
    rng = np.random.default_rng([index, int(1000 * skill)])  # from here on it is the model that acts
    predicted = correct if rng.random() < skill else int(rng.integers(5))
    losses = [1.2 + 0.5 * float(rng.random()) for _ in range(5)]
    losses[predicted] = 0.4
    choices = [f"The lamp in the image has the following visible parts: {list_of(parts)}." for parts in lists]
    spans, at = [], choices[predicted].index(": ")
    for part in lists[predicted]:
        start = choices[predicted].index(part, at)
        at = start + len(part)
        if rng.random() > max(0.1, skill):
            continue
        template = masks.get(part, next(iter(masks.values())))
        mask = np.roll(template, rng.integers(-9, 10, 2) if rng.random() < 0.3 else rng.integers(-3, 4, 2), (0, 1))
        iou = float((mask & template).sum() / (mask | template).sum()) if part in masks else None
        spans.append(
            {"phrase": part, "char": [start, at], "mask": encode_rle(mask), "score": float(rng.random()), "status": "ok",
             "part": part if part in masks else None, "iou": iou}
        )  # fmt: skip
    ious = {part: max([s["iou"] for s in spans if s["part"] == part], default=0.0) for part in gt}
    asks_object = kind in ("part_to_whole", "whole_to_part")
    false = sum(s["part"] is None for s in spans)
    return {
        "instance_id": f"q{index}", "image_path": image_path, "image_label": "lamp", "question_type": kind,
        "questions": ["What visible parts does the lamp have?"] + ["What is the object in the image?"] * asks_object,
        "choices": choices, "choice_parts": lists, "correct": correct, "predicted": predicted, "predicted_published": predicted,
        "scores": {"answer_mean": losses, "answer_sum": [9 * x for x in losses], "full_mean": [x / 3 for x in losses]},
        "object_choices": ["It is a lamp.", "It is a chair.", "It is a truck."] if asks_object else None,
        "object_scores": {"answer_mean": [0.1, 1.0, 2.0]} if asks_object else None,
        "object_correct": 0 if asks_object else None, "object_predicted": 0 if asks_object else None,
        "object_predicted_published": 0 if asks_object else None,
        "gt_parts": gt, "gt_masks": [encode_rle(m) for m in masks.values()],
        "published": {"spans": [], "gmiou": skill, "ious": dict.fromkeys(STRATEGIES, [skill] * len(gt))},
        "end_to_end": {
            "answer": choices[predicted], "spans": spans, "gmiou_strict": sum(ious.values()) / len(ious), "pair_ious": ious,
            "span_counts": {"matched": len(spans), "predicted": len(spans), "target": len(lists[predicted])},
            "bio_counts": [[9, 9], [4, 3], [2, 1]],
            "false_masks": false, "masks": len(spans),
        },
    }  # fmt: skip


def with_all_protocols(record):
    """A record of older files -> one of today's, with all protocols and all that is measured about them."""
    own = record["end_to_end"]
    named = [len(record["gt_parts"]), len(record["gt_parts"]), len(record["gt_parts"])]
    more = {"boundary_pair_ious": own["pair_ious"], "inside_object": [0.9], "overlap": [0.1], "absent_parts": 2,
            "absent_parts_with_mask": 1, "empty_pairs": {"paired": 0}, "choice": record["predicted"], "extra_masks": 0,
            "ious": dict.fromkeys(STRATEGIES, list(own["pair_ious"].values()))}  # fmt: skip
    own = {**own, **more}
    given = {**record["published"], "pair_ious": own["pair_ious"], "boundary_ious": list(own["pair_ious"].values()),
             "inside_object": [1.0], "overlap": [0.0], "empty_pairs": {"paired": 1}}  # fmt: skip
    n = len(record["gt_parts"])
    return {
        **record, "published": given, "middle": own, "end_to_end": own, "gt_areas": [0.02] * n, "gt_overlap": [0.0],
        "generation": {**own, "named_parts": {"exact": named, "rules": named}}, "baselines": {k: [0.25] * n for k in BASELINES},
        "part_matches_rules": {"end_to_end": named, "published": named}, "second_scores": None,
    }  # fmt: skip


def make_evaluation(
    folder, *, skill=0.8, seed=1, images=6, name="synthetic PARTONOMY", stem="partonomy", full=True, data=None, split="test"
):
    """The folder of one evaluation, as `plum evaluate` writes it; its data are beside it, or in the folder `data`."""
    rng = np.random.default_rng(seed)
    data = data or folder / "data"
    (data / "images").mkdir(parents=True, exist_ok=True)
    scenes = {f"images/{i:04}.png": draw_scene(data / f"images/{i:04}.png", rng) for i in range(images)}
    questions = data / f"{stem}_qa_pairs_{split}.json"
    questions.write_text("[]")
    (data / "dataset.json").write_text(json.dumps({"name": name}))
    names, chosen = [path for path in scenes for _ in range(5)], np.random.default_rng(seed)
    records = [make_instance(i, path, scenes[path], chosen, skill) for i, path in enumerate(names)]
    records = [with_all_protocols(r) for r in records] if full else records
    write_evaluation(folder, records, questions, sha256=f"{int(1000 * skill):064x}")
    return folder


def write_evaluation(out, records, questions, sha256):
    out.mkdir(parents=True, exist_ok=True)
    (out / "instances.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    results = {
        "benchmark": "partonomy",
        "split": questions.stem.rpartition("_")[2],
        "checkpoint": {"path": "run/checkpoints/1", "sha256": sha256},
        "data": {"path": str(questions), "sha256": "d" * 64, "n_instances": len(records)},
        "counts": {"scored": len(records), "skipped": {}},
        "settings": {"mc_score": "answer_mean", "empty_union": "one"},
        "summary": partonomy.summary(records),
        "protocols": partonomy.protocols(records),
        "command": "plum evaluate partonomy --checkpoint run",
        "version": "0.1.0",
    }
    (out / "results.json").write_text(json.dumps(results))


def make_run(folder, *, images=20, seed=0, evaluations=((0, 0.05), (950, 0.85))):
    """A quickstart folder as the commands write it: data, run, metrics, two evaluations of the test split."""
    rng = np.random.default_rng(seed)
    (folder / "data" / "images").mkdir(parents=True)
    (folder / "data" / "partonomy_qa_pairs_test.json").write_text("[]")
    (folder / "data" / "dataset.json").write_text(json.dumps({"name": "synthetic PARTONOMY"}))
    scenes = {f"images/{i:04}.png": draw_scene(folder / "data" / f"images/{i:04}.png", rng) for i in range(images)}
    run = folder / "run"
    for step, skill in evaluations:
        out = run / "eval" / str(step) / "test"
        names = [path for path in scenes for _ in range(3)]
        records = [make_instance(i, path, scenes[path], rng, skill) for i, path in enumerate(names)]
        write_evaluation(out, records, folder / "data/partonomy_qa_pairs_test.json", sha256=f"{step:064x}")
    run.mkdir(exist_ok=True)
    config = {"name": "tiny", "seed": seed, "model": {"llama": {"width": 96}}, "eval": {"mc_score": "answer_mean"}}
    (run / "config.json").write_text(json.dumps(config))
    record = {"command": "train", "versions": {"jax": "0.10.2"}, "seconds": {"total": 612.5}, "platform": "Linux"}
    (run / "run.json").write_text(json.dumps(record))
    with open(run / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "language", "lr", "images_per_second"])
        for step in range(20, 951, 20):
            loss = 7 * np.exp(-step / 180) + 0.4 + 0.1 * rng.random()
            lr = 4e-3 * min(1, step / 60) * (0.02 + 0.98 * (1 + np.cos(np.pi * step / 950)) / 2)
            writer.writerow([step, round(loss, 4), round(0.7 * loss, 4), round(lr, 6), round(55 + 4 * rng.random(), 2)])
    (folder / "results.json").write_text(json.dumps({"config": "tiny", "seed": seed, "train": {"seconds": 600.0}}))
    return folder


class Page(html.parser.HTMLParser):
    """Collects what the tests ask about; `errors` holds tags that were not closed in order."""

    VOID = {"meta", "link", "input", "img", "br", "circle", "path"}

    def __init__(self, text):
        super().__init__()
        self.open, self.errors, self.tags, self.words = [], [], [], []
        self.feed(text)
        self.errors += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(v in (a.get(k) or "").split() for k, v in wanted.items())]
