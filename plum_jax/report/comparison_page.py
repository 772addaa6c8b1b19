"""The page of `plum evaluate --compare --html`: differences per question type, and the questions that changed most as cards."""

import json
from pathlib import Path

from plum_jax.report.cards import make_card
from plum_jax.report.data import Evaluation
from plum_jax.report.instances import read_instances
from plum_jax.report.page import render
from plum_jax.report.tables import Column, Row, Table, as_lines, percent

COLUMNS = (
    Column("A"), Column("B"), Column("B - A"), Column("from", "95 % interval"), Column("to", "95 % interval"),
    Column("better", "questions where B is", 0), Column("worse", "questions where B is", 0),
    Column("equal", "questions where B is", 0),
)  # fmt: skip


def page(report, images=None):
    """The dictionary of compare.compare_folders -> HTML text.

    Args:
      images: folder that image paths are relative to; None: where results.json says, else no pictures.
    """
    sides = [_side(report[name]["path"], label, images) for name, label in (("a", "A"), ("b", "B"))]
    groups = []
    for case in report["cases"]:
        cards = [make(case[name]["instance_id"]) for name, make in zip(("a", "b"), sides, strict=True)]
        groups.append([card for card in cards if card is not None])
    tables = [as_lines(_table(kind, protocols)) for kind, protocols in report["question_types"].items()]
    return render("comparison.html", heading="Two evaluations, side by side", report=report, tables=tables, groups=groups)


def _table(kind, protocols):
    rows = []
    for protocol, metrics in protocols.items():
        for name, n in metrics.items():
            low, high = n["interval_95"] or (None, None)
            values = tuple(percent(value) for value in (n["a"], n["b"], n["difference"], low, high))
            sure = low is not None and (low > 0 or high < 0)
            cells = (*values, n["better"], n["worse"], n["equal"])
            rows.append(Row((protocol.replace("_", " "), name), cells, "ours" if sure else "random"))
    title = kind.replace("_", " ")
    return Table(kind, title, "", ("protocol", "metric"), COLUMNS, tuple(rows))


def _side(path, label, images):
    """-> instance id -> Card or None."""
    path = Path(path)
    file = path / "instances.jsonl" if path.is_dir() else path
    results = file.with_name("results.json")
    found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    evaluation = Evaluation(file.parent, None, "", found, *read_instances(file), label)
    by_id = {instance.id: instance for instance in evaluation.instances}
    root = evaluation.data_root if images is None else Path(images)
    measure = (found.get("settings") or {}).get("mc_score", "answer_mean")
    return lambda id: make_card(by_id[id], root, measure, label) if id in by_id else None
