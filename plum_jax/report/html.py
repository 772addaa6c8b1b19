"""A Run -> the text of the report. Autoescape is on; only style.css and the charts are trusted markup."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
from markupsafe import Markup

from plum_jax.report import analysis
from plum_jax.report.cards import make_card
from plum_jax.report.charts import line_chart

HERE = Path(__file__).parent
SAMPLES, WORST = 30, 10
MAIN_TYPE = "identification_with_label"
COLUMNS = (  # heading, where it is in `protocols` of results.json
    ("part accuracy", ("end_to_end", "mc_part_text", "accuracy")),
    ("object accuracy", ("end_to_end", "mc_object_text", "accuracy")),
    ("phrase F1", ("end_to_end", "span", "f1")),
    ("IoU, per question", ("end_to_end", "mask_macro", "gmIoU-paired_strict")),
    ("IoU, per mask", ("end_to_end", "mask_micro", "gmIoU-paired_strict")),
    ("false masks", ("end_to_end", "false_mask_rate")),
    ("part accuracy", ("published", "mc_part_text", "accuracy")),
    ("IoU, per question", ("published", "mask_macro", "gmIoU-paired")),
    ("IoU, per mask", ("published", "mask_micro", "gmIoU-paired")),
)
HEADLINE = (  # key, name, explanation, target of the tiny configuration, lower is better
    ("span_f1", "Phrases found", "F1 of the phrases that the model marks in its answer, exact boundaries", 0.95, False),
    ("gmiou_macro", "Masks, end to end", "mean IoU over the parts of a question, a missing mask counts 0", 0.70, False),
    (
        "part_accuracy",
        "Right list of parts",
        "share of questions with the right choice of five; guessing gives 0.20",
        0.80,
        False,
    ),
    ("false_mask_rate", "False masks", "share of drawn masks whose phrase names no visible part", 0.10, True),
)
CURVES = {  # column of metrics.csv -> title, explanation
    "loss": ("loss", "weighted sum of the terms"),
    "language": ("language", "cross-entropy of the answer tokens"),
    "tag": ("tags", "cross-entropy of the phrase tags"),
    "shape": ("shape", "Dice or focal Tversky loss of the masks"),
    "bce": ("pixels", "binary cross-entropy of the masks"),
    "patch": ("patches", "auxiliary: which part a patch shows"),
    "reference": ("reference", "divergence from the base model"),
    "tag_accuracy": ("tag accuracy", "tokens of phrases tagged right"),
    "mask_iou": ("mask IoU", "of the training masks, phrases given"),
    "grad_norm": ("gradient norm", "before clipping"),
    "lr": ("learning rate", ""),
    "images_per_second": ("images per second", ""),
    "data_wait": ("waiting for data", "share of the time of a step"),
}
LOGARITHMIC = {"loss", "language", "tag", "shape", "bce", "patch", "reference"}
NOT_CURVES = {"step", "time", "seconds", "elapsed", "epoch"}


@dataclass(frozen=True)
class Tile:
    name: str
    explain: str
    value: float | None
    before: float | None
    target: float | None
    lower: bool
    interval: list | None  # 95 %, bootstrap over images

    @property
    def met(self):
        if self.target is None:
            return None
        return self.value is not None and (self.value <= self.target if self.lower else self.value >= self.target)


@dataclass(frozen=True)
class Row:
    """One line of the table of question types; `before` and `after` hold a number or None for each of COLUMNS."""

    name: str
    n: int
    after: list
    before: list
    main: bool = False


def render(run):
    """Run -> (HTML text, facts about it: numbers of cards, questions and skipped things)."""
    cards, worst = _cards(run)
    context = {
        **_heading(run),
        **_scores(run),
        **_parts(run),
        "samples": cards,
        "worst": worst,
        "charts": _charts(run.metrics),
        "skipped": _skipped(run, cards + worst),
        "config": list(_flatten(run.config)),
        "versions": _versions(run.record),
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),
    }
    shown = (("headline", "numbers", "tiles"), ("types", "question types", "rows"), ("training", "training", "charts"),
             ("samples", "samples", "samples"), ("worst", "worst", "worst"), ("confusion", "confusion", "confusion"),
             ("parts", "parts", "areas"))  # fmt: skip
    context["sections"] = [(id, name) for id, name, key in shown if context[key]] + [("run", "the run")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = lambda name: name.replace("_", " ")
    text = environment.get_template("template.html").render(context)
    return text, {
        "cards": len(cards),
        "worst": len(worst),
        "questions": context["n_questions"],
        "skipped": dict(context["skipped"]),
    }


def _heading(run):
    after, before = run.after, run.before
    steps = int(run.metrics["step"][-1]) if run.metrics.get("step") else None
    seconds = (run.summary.get("train") or {}).get("seconds")
    facts = []
    if after is not None:
        images = len({i.image_path for i in after.instances})
        facts.append(f"{len(after.instances):,} questions about {images:,} images")
    seed = run.summary.get("seed", run.config.get("seed"))
    if steps is not None:
        facts.append(f"{steps:,} training steps")
    if seconds:
        facts.append(f"{seconds / 60:.1f} minutes of training")
    if seed is not None:
        facts.append(f"seed {seed}")
    return {
        "title": f"PLUM report: {run.name}",
        "heading": f"PLUM “{run.name}”" + (f" on the {after.split} split" if after is not None and after.split else ""),
        "facts": facts,
        "compare": before is not None,
        "untrained": before is not None and before.step == 0,
        "before_step": "untrained" if before is not None and before.step == 0 else f"step {before.step}" if before else "",
        "after_step": f"step {after.step}" if after is not None and after.step is not None else "training",
        "columns": [(name, path[0]) for name, path in COLUMNS],
        "n_questions": len(after.instances) if after else 0,
        "n_choices": len(after.instances[0].choices) if after and after.instances else 0,
        "chance": _mean([1 / len(i.choices) for i in after.instances]) if after else None,
        "object_chance": _mean([1 / len(i.object_choices) for i in after.instances if i.object_choices]) if after else None,
    }


def _scores(run):
    """Tiles and table, from the results.json of the evaluations: nothing is computed twice."""
    after, before = (e.results if e is not None else {} for e in (run.after, run.before))
    types = (after.get("summary") or {}).get("by_question_type") or {}
    if not types:
        return {"tiles": [], "rows": [], "headline_type": ""}
    main = MAIN_TYPE if MAIN_TYPE in types else next(iter(types))
    earlier = ((before.get("summary") or {}).get("by_question_type") or {}).get(main, {})
    intervals = _look_up(after, "end_to_end", main, ("interval_95",)) or {}
    aims = run.name == "tiny" and main == MAIN_TYPE
    tiles = [
        Tile(name, explain, types[main].get(key), earlier.get(key), target if aims else None, lower, intervals.get(key))
        for key, name, explain, target, lower in HEADLINE
    ]
    rows = [
        Row(
            name,
            types[name]["n_instances"],
            [_look_up(after, path[0], name, path[1:]) for _, path in COLUMNS],
            [_look_up(before, path[0], name, path[1:]) for _, path in COLUMNS],
            name == main,
        )
        for name in sorted(types, key=lambda name: (name != main, name))
    ]
    return {"tiles": tiles, "rows": rows, "headline_type": main.replace("_", " ").capitalize()}


def _look_up(results, protocol, question_type, keys):
    """A number of results.json, None where it is missing or counts nothing."""
    group = ((results.get("protocols") or {}).get(protocol) or {}).get(question_type)
    for key in keys:
        if not isinstance(group, dict) or group.get("total") == 0:  # the accuracy of no question is not 0
            return None
        group = group.get(key)
    return group


def _parts(run):
    if run.after is None or not run.after.instances:
        return {"confusion": None, "areas": [], "parts": [], "false_parts": [], "n_masks": 0, "n_false": 0, "heat_max": 1}
    instances = run.after.instances
    table, parts = analysis.confusion(instances), analysis.by_part(instances)
    false = sorted((p for p in parts if p.false_masks), key=lambda p: (-p.false_masks, p.name))
    return {
        "confusion": table,
        "nothing": analysis.NOTHING,
        "heat_max": max((n for row in table.cells for n in row), default=1) or 1,
        "areas": analysis.by_area(instances),
        "parts": parts,
        "false_parts": false[:8],
        "n_masks": sum(p.masks for p in parts),
        "n_false": sum(p.false_masks for p in parts),
    }


def _cards(run):
    if run.after is None:
        return [], []
    build = partial(make_card, root=_image_root(run), score_key=(run.config.get("eval") or {}).get("mc_score", "answer_mean"))
    instances = run.after.instances
    return [build(i) for i in analysis.pick_samples(instances, SAMPLES, MAIN_TYPE)], [
        build(i) for i in analysis.pick_worst(instances, WORST)
    ]


def _image_root(run):
    """The folder that was evaluated: as written in results.json, else next to the run (it may have been moved), else None."""
    path = (run.after.results.get("data") or {}).get("path")
    places = [Path(path)] if path else []
    places += [p.parent for p in places if p.suffix] + [run.folder / "data", run.folder.parent / "data"]
    return next((p for p in places if p.is_dir()), None)


def _charts(metrics):
    """One chart per column: known ones first in the order of CURVES, then the others by name."""
    names = [n for n in CURVES if n in metrics] + sorted(n for n in metrics if n not in CURVES and n not in NOT_CURVES)
    steps = metrics.get("step") or list(range(1, len(next(iter(metrics.values()), [])) + 1))
    charts = []
    for name in names:
        title, explain = CURVES.get(name, (name.replace("_", " ").replace("/", ": "), ""))
        svg = line_chart(title, steps, metrics[name], log=name in LOGARITHMIC)
        if svg:
            charts.append({"title": title, "explain": explain, "svg": svg})
    return charts


def _skipped(run, cards):
    rows = []
    for name, evaluation in (("before: ", run.before), ("", run.after)):
        if evaluation is not None:
            rows += [(f"{name}questions, {reason}", n) for reason, n in sorted(evaluation.skipped.items())]
            rows.append((f"{name}lines of instances.jsonl that are not readable", evaluation.unreadable_lines))
    if run.after is not None:
        unscored = sum(i.gmiou is None for i in run.after.instances)
        rows += [("questions without a mask score", unscored), ("cards without a picture", sum(not c.picture for c in cards))]
    return rows


def _versions(record):
    timings = [(f"seconds: {k}", f"{v:,.1f}") for k, v in (record.get("seconds") or {}).items() if isinstance(v, int | float)]
    inputs = [(f"input: {k}", f"{v.get('path')} {v.get('sha256') or ''}") for k, v in (record.get("inputs") or {}).items()]
    whole = [(k, record[k]) for k in ("command", "started", "finished", "device", "platform") if record.get(k)]
    return whole + sorted((record.get("versions") or {}).items()) + timings + inputs


def _flatten(config, prefix=""):
    for key, value in sorted(config.items()):
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _mean(values):
    return math.fsum(values) / len(values) if values else None
