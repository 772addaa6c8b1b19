"""The report of a plausible run, of half a run and of a hostile one."""

import csv
import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_pipelines.masks import encode_rle
from plum_jax.errors import UserError
from plum_jax.evaluation import partonomy
from plum_jax.evaluation.masks import STRATEGIES
from plum_jax.report import main, write_report
from plum_jax.report.analysis import by_area, by_part, confusion, pick_samples, pick_worst
from plum_jax.report.charts import line_chart
from plum_jax.report.data import read_run

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


def make_run(folder, *, images=20, seed=0, evaluations=((0, 0.05), (950, 0.85))):
    """A quickstart folder as the commands write it: data, run, metrics, two evaluations of the test split."""
    rng = np.random.default_rng(seed)
    (folder / "data" / "images").mkdir(parents=True)
    scenes = {f"images/{i:04}.png": draw_scene(folder / "data" / f"images/{i:04}.png", rng) for i in range(images)}
    run = folder / "run"
    for step, skill in evaluations:
        out = run / "eval" / str(step) / "test"
        out.mkdir(parents=True)
        names = [path for path in scenes for _ in range(3)]
        records = [make_instance(i, path, scenes[path], rng, skill) for i, path in enumerate(names)]
        (out / "instances.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        results = {
            "split": "test",
            "data": {"path": str(folder / "data/partonomy_qa_pairs_test.json")},
            "counts": {"skipped": {"a": 2}},
            "summary": partonomy.summary(records),
            "protocols": partonomy.protocols(records),
        }
        (out / "results.json").write_text(json.dumps(results))
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


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("quickstart"))
    facts = write_report(folder, folder / "report.html")
    text = (folder / "report.html").read_text()
    return facts, text, Page(text)


def test_page_is_whole_and_light(report):
    facts, text, page = report
    assert not page.errors
    assert text.startswith("<!DOCTYPE html>")
    assert 24 <= facts["cards"] == len(page.all("article", **{"class": "card"})) - facts["worst"]
    assert facts["worst"] == 10
    assert facts["bytes"] < 6_000_000
    assert {a["id"] for a in page.all("section")} == {
        "headline",
        "types",
        "training",
        "samples",
        "worst",
        "confusion",
        "parts",
        "run",
    }
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= set(ids)


def test_page_requests_nothing(report):
    _, text, page = report
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not page.all("script")
    assert not re.search(r"@import|url\(|https?://", text)


def test_page_is_readable_without_mouse_and_colour(report):
    _, _, page = report
    images = page.all("img")
    assert len(images) > 100
    assert all(a.get("alt") for a in images)
    phrases = page.all("span", **{"class": "phrase"})
    assert phrases
    assert all(a["tabindex"] == "0" for a in phrases)
    assert all(a["aria-label"] for a in page.all("svg"))
    words = " ".join(page.words)
    assert "right" in words and "wrong" in words and "✓" in words and "✗" in words


def test_hostile_text_is_escaped(tmp_path):
    folder = make_run(tmp_path / "run", images=4)
    path = folder / "run/eval/950/test/instances.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    evil = "<script>alert(1)</script>\"'><img src=//evil.example/x.png>"
    for row in rows:
        row.update(image_path=f"../{evil}", image_label=evil, instance_id=evil, question_type=evil, questions=[evil] * 2)
        row["choices"] = [evil + choice for choice in row["choices"]]
        row["end_to_end"]["answer"] = evil + row["end_to_end"]["answer"]
        for span in row["end_to_end"]["spans"]:
            span.update(phrase=evil, char=[0, len(evil)], status=evil)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((folder / "run/config.json").read_text())
    (folder / "run/config.json").write_text(json.dumps({**config, "name": evil, evil: evil}))
    write_report(folder, folder / "report.html")
    page = Page((folder / "report.html").read_text())
    assert not page.errors
    assert not page.all("script")
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert evil in "".join(page.words)


def test_no_spans_no_masks(tmp_path):
    folder = make_run(tmp_path / "run", images=4)
    path = folder / "run/eval/950/test/instances.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["end_to_end"].update(
            spans=[], gmiou_strict=0.0, pair_ious=dict.fromkeys(row["gt_parts"], 0.0), false_masks=0, masks=0
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n{}\n")
    facts = write_report(folder, folder / "report.html")
    assert facts["skipped"]["lines of instances.jsonl that are not readable"] == 2
    assert "No mask was drawn." in (folder / "report.html").read_text()


def test_parts_of_a_run(tmp_path):
    """Before is missing; metrics are missing; only metrics are there; the images are gone; one evaluation folder."""
    folder = make_run(tmp_path / "a", images=3, evaluations=((950, 0.9),))
    (folder / "run/metrics.csv").unlink()
    for path in (folder / "data/images").iterdir():
        path.unlink()
    facts = write_report(folder, folder / "report.html")
    text = (folder / "report.html").read_text()
    assert "untrained" not in text
    assert 'id="training"' not in text
    assert text.count("no image: ") == facts["cards"] + facts["worst"]
    assert write_report(folder / "run/eval/950/test", folder / "one.html")["cards"] == 9
    curves = make_run(tmp_path / "b", images=1, evaluations=())
    assert write_report(curves, curves / "report.html")["cards"] == 0
    assert write_report(curves / "run", curves / "report.html")["questions"] == 0


def test_command(tmp_path, capsys):
    folder = make_run(tmp_path / "a", images=3)
    assert main([str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(folder / "report.html")
    assert main([str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").exists()
    assert "r.html" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for arguments in ([str(tmp_path / "none")], [str(tmp_path / "empty")], [str(folder), "--out", str(tmp_path / "no/x.html")]):
        with pytest.raises(UserError):
            main(arguments)
    (folder / "run/config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        main([str(folder)])


def test_samples_cover_the_types_and_worst_are_worst(tmp_path):
    instances = read_run(make_run(tmp_path / "a", images=12)).after.instances
    samples = pick_samples(instances, 10, TYPES[1])
    assert len({i.id for i in samples}) == 10
    assert {i.question_type for i in samples} == set(TYPES)
    assert samples[0].question_type == TYPES[1]
    assert len({i.image_path for i in samples}) > 6
    assert len(pick_samples(instances, 10_000, TYPES[1])) == len(instances)
    worst = pick_worst(instances, 5)
    assert max(i.gmiou for i in worst) <= min(i.gmiou for i in instances if i not in worst)


def test_tables_count_every_part(tmp_path):
    instances = read_run(make_run(tmp_path / "a", images=12)).after.instances
    targets = sum(len(i.gt_parts) for i in instances)
    assert sum(b.count for b in by_area(instances)) == targets
    parts = by_part(instances)
    assert sum(p.targets for p in parts) == targets
    assert sum(p.masks for p in parts) == sum(len(i.spans) for i in instances)
    table = confusion(instances)
    assert table.wrong == sum(set(i.choice_parts[i.predicted]) != set(i.gt_parts) for i in instances)
    assert table.rows[-1] == "(nothing)" or "(nothing)" not in table.rows


def test_line_chart_says_its_numbers():
    svg = line_chart("loss <a>", [1, 2, 3, 4], [8.0, float("nan"), 2.0, 0.01], log=True)
    assert "8 at step 1, 0.01 at step 4" in svg
    assert "logarithmic" in svg
    assert "<a>" not in svg
    assert line_chart("x", [1], [1.0]) == ""
    assert "nan" not in line_chart("flat", [1, 2], [0.0, 0.0])
