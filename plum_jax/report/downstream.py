"""The other benchmarks: ReasonSeg and VQA beside the published numbers (D 6.5), and all of their own measures."""

from plum_jax.report import published
from plum_jax.report.standing import protocol_name
from plum_jax.report.tables import Column, Notes, Row, Table, percent

VQA = {"textvqa": "TextVQA", "gqa": "GQA", "pope": "POPE"}
VQA_NOTES = {
    "contains": "Scored as the published numbers are: where the official score is 0, a reference that stands anywhere in the "
    "answer counts as right. Which splits were published is not said.",
    "official": "Not comparable: the published numbers are not on the scale of the official metric, which ours have.",
}
REASON_NOTES = {
    "teacher_forced": "The answer is given, as in the validation of the released code, which is on val; the split of the "
    "published numbers is not said. Ours: {split}.",
    "open": "Not comparable: the answer and its phrases are the model’s own, the published numbers are given them.",
}
EXPLAIN = {
    "teacher_forced": "the answer is given, only the mask is the model’s",
    "open": "answer, phrases and masks are the model’s own",
    "official": "the metric of the benchmark’s authors",
    "contains": "the official score, or 1 where it is 0 and the answer contains a reference",
}


def downstream_tables(evaluations):
    """[ReasonSeg, VQA], the published rows with ours below."""
    return [reason_table(evaluations), vqa_table(evaluations)]


def reason_table(evaluations):
    rows, notes = _published("reason", "ReasonSeg", ("giou", "ciou")), Notes()
    for e in evaluations:
        for protocol in e.protocols if e.benchmark == "reason" else ():
            keys = ("giou_mean_over_samples", "ciou_cumulative")
            cells = tuple(percent(e.number(protocol, "all", key)) for key in keys)
            note = REASON_NOTES.get(protocol, "").format(split=e.split or "not said")
            rows += _ours(e.label, protocol, f"ReasonSeg, {e.split}", cells, note, notes)
    columns = (Column("gIoU"), Column("cIoU"))
    intro = "In percent. gIoU: mean IoU over the questions; cIoU: intersections by unions, both summed over them."
    return _table("reason", "ReasonSeg (Table 4)", intro, columns, rows, notes)


def vqa_table(evaluations):
    """Evaluations of the same checkpoint share a row."""
    rows, notes, merged = _published("vqa", "not said", tuple(VQA)), Notes(), {}
    for e in evaluations:
        place = list(VQA).index(dataset_of(e)) if dataset_of(e) in VQA else None
        for protocol in e.protocols if place is not None else ():
            value = percent(e.number(protocol, "all", "accuracy"))
            key = ((e.results.get("checkpoint") or {}).get("sha256") or e.label, protocol)
            label, cells, splits = merged.get(key, (e.label, [None] * len(VQA), []))
            if value is None or cells[place] is not None:
                key = (e.label, protocol)
                label, cells, splits = e.label, [None] * len(VQA), []
            cells[place] = value
            merged[key] = label, cells, [*splits, *([e.split] if e.split else [])]
    for (_, protocol), (label, cells, splits) in merged.items():
        rows += _ours(label, protocol, ", ".join(splits) or "not said", tuple(cells), VQA_NOTES.get(protocol, ""), notes)
    columns = tuple(Column(name, digits=2) for name in VQA.values())
    intro = "Accuracy in percent. Official: the metric of the benchmark’s authors. Contains: the scoring of the released code."
    return _table("vqa", "Visual questions (Table 5)", intro, columns, rows, notes)


def dataset_of(evaluation):
    """ "textvqa", "gqa", "pope", ... of an evaluation of answers in words."""
    return str(evaluation.results.get("dataset") or evaluation.benchmark).lower().replace("_", "")


def _published(table, data, keys):
    return [
        Row((published.label(row), "published", data), tuple(row["values"].get(key) for key in keys), "published")
        for row in published.rows(table)
    ]


def _ours(label, protocol, data, cells, note, notes):
    """[Row], or nothing without a number."""
    if all(cell is None for cell in cells):
        return []
    return [Row((f"ours: {label}", protocol_name(protocol), data), cells, "ours", (notes.add(note),) if note else ())]


def _table(id, title, intro, columns, rows, notes):
    return Table(
        id, title, intro, ("method", "protocol", "data"), columns, tuple(rows), tuple(notes.texts), published.footnote(id)
    )


def benchmark_tables(evaluations):
    """One table a benchmark: every protocol and group of questions, every measure; shares in percent, counts as they are."""
    tables = []
    for name in dict.fromkeys(e.benchmark for e in evaluations if e.benchmark != "partonomy"):
        mine = [e for e in evaluations if e.benchmark == name]
        groups = [(e, p, g) for e in mine for p in e.protocols for g in (e.group(p) or {})]
        keys = list(dict.fromkeys(k for e, p, g in groups for k in (e.group(p, g) or {}) if e.number(p, g, k) is not None))
        columns = tuple(Column(key.replace("_", " "), digits=0 if _is_count(key) else 1) for key in keys)
        rows = [
            Row((e.label, protocol_name(p), g), tuple(_scaled(key, e.number(p, g, key)) for key in keys)) for e, p, g in groups
        ]
        used = [p for p in EXPLAIN if any(p == protocol for _, protocol, _ in groups)]
        intro = "Shares in percent. " + " ".join(f"{protocol_name(p).capitalize()}: {EXPLAIN[p]}." for p in used)
        title = f"Benchmark {name}: {', '.join(dict.fromkeys(str(e.results.get('dataset') or name) for e in mine))}"
        tables.append(Table(f"benchmark_{name}", title, intro, ("model", "protocol", "questions"), columns, tuple(rows)))
    return tables


def _is_count(key):
    return key.startswith("n_") and key != "n_acc"  # which is a rate, of questions without a target


def _scaled(key, value):
    return value if value is None or _is_count(key) else percent(value)
