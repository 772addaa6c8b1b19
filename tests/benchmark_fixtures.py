"""Small folders of the benchmarks beside PARTONOMY in their real layouts, and their command-line arguments."""

import json

from fixtures_folders import blocks, box, coco, run_lengths, write_image, write_json, write_labels
from fixtures_folders import box_mask as box_mask  # re-exported

from plum_jax import cli
from plum_jax.evaluation import benchmarks

LEFT, RIGHT = (0, 0, 20, 30), (30, 5, 50, 35)


def arguments(name, *argv):
    """The arguments of a benchmark's `open_data`."""
    parser = cli.Parser()
    for flag, kind in (("--data", str), ("--split", str), ("--max-images", int)):
        parser.add_argument(flag, type=kind)
    benchmarks.module(name).add_flags(parser)
    return parser.parse_args([str(word) for word in argv])


def opened(name, *argv):
    """-> (benchmarks.Data, its questions)."""
    data = benchmarks.module(name).open_data(arguments(name, *argv))
    return data, list(data.questions)


def refer(root, dataset="grefcoco", split="val"):
    """Two images: two things and both of them together in the first, nothing that fits in the second."""
    clef = dataset == "refclef"
    names = [f"0{i}/images/{i}.jpg" if clef else f"COCO_train2014_00000000000{i}.jpg" for i in (1, 2)]
    for i, name in enumerate(names):
        write_image(root / "refer_seg/images" / ("saiapr_tc-12" if clef else "mscoco/images/train2014") / name, seed=i)
    annotations = [(1, 1, [box(*LEFT)]), (1, 1, run_lengths(box_mask(RIGHT))), (2, 1, [box(*LEFT)])]
    write_json(root / "refer_seg" / dataset / "instances.json", coco(names, annotations, ({"name": "thing"},)))
    said = [(1, [1], ["Left Thing.", "it"]), (1, [2], ["it"]), (1, [1, 2], ["both"]), (2, [-1], ["a dog"]), (2, [3], ["it"])]
    if dataset != "grefcoco":
        said = [(image, targets[0], words) for image, targets, words in said if len(targets) == 1 and targets != [-1]]
    refs = [
        {"ref_id": i, "image_id": image, "ann_id": targets, "split": split, "sentences": [{"sent": w} for w in words]}
        for i, (image, targets, words) in enumerate(said)
    ]
    name = {"grefcoco": "grefs(unc)", "refcocog": "refs(umd)"}.get(dataset, "refs(unc)")
    write_json(root / "refer_seg" / dataset / f"{name}.json", refs)
    return root


def reason(root, split="test"):
    """A short query of two wordings with an ignored region, and a long one."""
    folder = root / "reason_seg/ReasonSeg" / split
    shape = lambda label, x0, y0, x1, y1: {"label": label, "points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}  # noqa: E731
    entries = {
        "a": (["what to sit on", "the seat"], False, [shape("target", 5, 5, 30, 30), shape("ignore", 40, 0, 55, 20)]),
        "b": (["Which thing could carry water?"], True, [shape("target", 10, 10, 50, 30), shape("flag", 0, 0, 5, 5)]),
    }
    for seed, (stem, (text, is_sentence, shapes)) in enumerate(entries.items()):
        write_image(folder / f"{stem}.jpg", seed=seed)
        write_json(folder / f"{stem}.json", {"text": text, "is_sentence": is_sentence, "shapes": shapes})
    return root


def semantic(root, dataset="ade20k"):
    """Stripes; ADE20K: no label, wall, sky, flag, and an image with a wall alone."""
    if dataset == "ade20k":
        for i, labels in enumerate((blocks(0, 1, 3, 150), blocks(1, 0, 0, 0))):
            write_image(root / f"ade20k/images/validation/ADE_val_{i}.jpg", seed=i)
            write_labels(root / f"ade20k/annotations/validation/ADE_val_{i}.png", labels)
    elif dataset == "cocostuff":
        write_image(root / "coco/val2017/000000000009.jpg")
        write_labels(root / "cocostuff/val2017/000000000009.png", blocks(0, 95, 181, 255))
    else:
        write_image(root / "mapillary/validation/images/a.jpg")
        write_labels(root / "mapillary/validation/v2.0/labels/a.png", blocks(0, 1, 2, 255), palette=True)
        labels = [{"readable": name, "evaluate": name != "Void"} for name in ("Bird", "Car", "Void")]
        write_json(root / "mapillary/config_v2.0.json", {"labels": labels})
    return root


def textvqa(root):
    entries = [
        {
            "question_id": 34602,
            "image_id": "a",
            "question": "what brand is it?",
            "answers": ["nokia"] * 8 + ["toshiba", "nokia n"],
        },
        {"question_id": 34603, "image_id": "b", "question": "what time is it?", "answers": ["8:00"] * 3 + ["eight"] * 7},
        {"question_id": 34604, "image_id": "missing", "question": "what is it?", "answers": ["it"] * 10},
    ]
    write_json(root / "textvqa/TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": entries})
    for seed, name in enumerate("ab"):
        write_image(root / f"textvqa/train_images/{name}.jpg", seed=seed)
    return root


def gqa(root):
    entry = lambda image, answer, full, kind: {  # noqa: E731
        "imageId": image, "question": "Is it there?", "answer": answer, "fullAnswer": full, "types": {"structural": kind},
    }  # fmt: skip
    content = {"201": entry("n1", "no", "No, it is not.", "verify"), "202": entry("n1", "cat", "It is a cat.", "query")}
    write_json(root / "gqa/questions/testdev_balanced_questions.json", content)
    write_image(root / "gqa/images/n1.jpg")
    return root


def pope(root, splits=("random", "popular", "adversarial")):
    for split in splits:
        path = root / f"pope/coco/coco_pope_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {"question_id": i, "image": "COCO_val2014_1.jpg", "text": f"Is there a {thing} in the image?", "label": label}
            for i, (thing, label) in enumerate([("cat", "yes"), (f"{split} dog", "no")], 1)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_image(root / "coco/val2014/COCO_val2014_1.jpg")
    return root
