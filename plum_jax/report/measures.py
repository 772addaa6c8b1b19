"""Our numbers beyond the paper's tables: every question type, intervals, sizes of parts, mask scores, what was left out."""

from plum_jax.report import analysis
from plum_jax.report.lenient import dictionary, number, pair
from plum_jax.report.standing import PROTOCOLS, protocol_name
from plum_jax.report.tables import Column, Row, Table, percent

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
OPTIONAL = (  # shown where a results.json has them: older ones do not
    ("IoU, per question", ("middle", "mask_macro", "gmIoU-paired_strict")),
    ("IoU, per mask", ("middle", "mask_micro", "gmIoU-paired_strict")),
    ("IoU, per question", ("generation", "mask_macro", "gmIoU-paired_strict")),
    ("IoU, per mask", ("generation", "mask_micro", "gmIoU-paired_strict")),
    ("false masks", ("generation", "false_mask_rate")),
)


def columns_of(evaluations):
    """COLUMNS, and of OPTIONAL those that any question type has a number for."""
    has = lambda path: any(e.number(path[0], kind, *path[1:]) is not None for e in evaluations for kind in e.types)  # noqa: E731
    return COLUMNS + tuple(column for column in OPTIONAL if has(column[1]))


def ordered_types(evaluations):
    """All question types, the main one first."""
    return sorted({t for e in evaluations for t in e.types}, key=lambda name: (name != MAIN_TYPE, name))


def types_table(evaluations):
    chosen = columns_of(evaluations)
    columns = (Column("questions", digits=0), *(Column(name, protocol_name(path[0])) for name, path in chosen))
    rows = []
    for kind in ordered_types(evaluations):
        for e in evaluations:
            cells = [percent(e.number(path[0], kind, *path[1:])) for _, path in chosen]
            if any(c is not None for c in cells):
                rows.append(Row((words(kind), e.label), (_n_questions(e, kind), *cells)))
    intro = "In percent. IoU end to end: a part without a mask counts 0. False masks: share of the masks, of no visible part."
    return Table("types", "Every question type", intro, ("question type", "model"), columns, tuple(rows))


def _n_questions(evaluation, kind):
    number = evaluation.number("end_to_end", kind, "n_instances")
    return number if number is not None else evaluation.number("published", kind, "mc_part_text", "total")


def leaves_table(evaluations):
    """Everything that results.json measures about the main type, whatever its name: one row a measure, one column a model."""
    kind = next(iter(ordered_types(evaluations)), None)
    found = {}
    for column, e in enumerate(evaluations):
        for protocol in e.protocols:
            for path, value in leaves(e.group(protocol, kind)):
                found.setdefault((protocol, path), {})[column] = value
    rows = [
        Row((protocol_name(protocol), words(path)), tuple(values.get(k) for k in range(len(evaluations))))
        for (protocol, path), values in sorted(found.items(), key=lambda item: (_order(item[0][0]), item[0][1]))
    ]
    columns = tuple(Column(e.label, digits=4) for e in evaluations)
    intro = "As results.json has them: shares from 0 to 1, and counts."
    return Table("measures", f"All measures, {words(kind or '')}", intro, ("protocol", "measure"), columns, tuple(rows))


def _order(protocol):
    return list(PROTOCOLS).index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS), protocol


def leaves(value, path=()):
    """Nested dictionaries -> [("group: key", number)]; lists and texts are left out, and so are intervals."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() if key != "interval_95" for leaf in leaves(inner, (*path, str(key)))]
    return [] if number(value) is None else [(": ".join(path), float(value))]


INTERVALS = (  # name, protocol, path of the number, path of its interval below interval_95
    ("masks, published", "published", ("mask_macro", "gmIoU-paired"), (("mask_macro", "gmIoU-paired"),)),
    (
        "masks, end to end",
        "end_to_end",
        ("mask_macro", "gmIoU-paired_strict"),
        (("mask_macro", "gmIoU-paired_strict"), ("gmiou_macro",)),
    ),
    ("part accuracy", "end_to_end", ("mc_part_text", "accuracy"), (("mc_part_text", "accuracy"), ("part_accuracy",))),
    ("object accuracy", "end_to_end", ("mc_object_text", "accuracy"), (("mc_object_text", "accuracy"),)),
)


def intervals(evaluation, kind):
    """[(name, value, low, high)] of the measures of a type that have an interval, 0 to 1. Older results name fewer."""
    found = []
    for name, protocol, path, places in INTERVALS:
        value = evaluation.number(protocol, kind, *path)
        held = evaluation.group(protocol, kind, "interval_95")
        bounds = next((b for b in (_at(held, place) for place in places) if b), None)
        if value is not None and bounds:
            found.append((name, value, *bounds))
    return found


def _at(value, path):
    """The pair of numbers at a path of nested dictionaries, else None."""
    for key in path:
        value = dictionary(value).get(key)
    return pair(value)


def interval_table(evaluations):
    rows = [
        Row((words(kind), name, e.label), tuple(percent(x) for x in numbers))
        for kind in ordered_types(evaluations)
        for e in evaluations
        for name, *numbers in intervals(e, kind)
    ]
    columns = (Column("value"), Column("from", "95 % interval"), Column("to", "95 % interval"))
    intro = "In percent; bootstrap over images, whose questions are drawn together."
    return Table("intervals", "Intervals", intro, ("question type", "measure", "model"), columns, tuple(rows))


def area_table(evaluations):
    rows = [
        Row((a.label, e.label), (a.count, percent(a.iou), percent(a.found)))
        for e in evaluations
        for a in analysis.area_bins(e)
        if a.count
    ]
    columns = (Column("parts", digits=0), Column("mean IoU"), Column("IoU of at least 0.5"))
    intro = "End to end, in percent, by the share of the image that the true mask covers; a missing mask counts 0."
    return Table("areas", "Score by size of the part", intro, ("area", "model"), columns, tuple(rows))


def reliability_table(evaluations):
    rows = [
        Row((f"{b['low']:.1f} to {b['high']:.1f}", e.label), (b["n_masks"], percent(b["score"]), percent(b["iou"])))
        for e in evaluations
        for b in analysis.reliability(e)["bins"]
        if b["n_masks"]
    ]
    columns = (Column("masks", digits=0), Column("mean score"), Column("mean IoU"))
    intro = "End to end, in percent: what the masks claim against what they reach. A mask of nothing visible has IoU 0."
    return Table("reliability", "Mask scores", intro, ("score", "model"), columns, tuple(rows))


def counts_table(evaluations):
    """Everything scored and left out, with reasons: one row a thing, one column a model."""
    found = {}
    for column, e in enumerate(evaluations):
        for name, n in counts(e):
            found.setdefault(name, {})[column] = n
    rows = [Row((name,), tuple(values.get(k) for k in range(len(evaluations)))) for name, values in found.items()]
    columns = tuple(Column(e.label, digits=0) for e in evaluations)
    return Table("counts", "Scored and left out", "Everything that was left out, and why.", ("what",), columns, tuple(rows))


def counts(evaluation):
    """[(what, how many)] of an evaluation: the counts of results.json, then what this report could not read or score."""
    found = []
    for name, value in dictionary(evaluation.results.get("counts")).items():
        if isinstance(value, dict):
            reasons = [
                (f"{words(name)}: {words(str(reason))}", n) for reason, n in sorted(value.items()) if number(n) is not None
            ]
            found += reasons or [(words(name), 0)]
        elif number(value) is not None:
            found.append((words(name), value))
    if evaluation.benchmark == "partonomy":
        found.append(("lines of instances.jsonl that are not readable", evaluation.unreadable_lines))
        found.append(("questions without a mask score", sum(i.gmiou is None for i in evaluation.instances)))
        parts = [part in {s.part for s in i.spans if s.status == "ok"} for i in evaluation.instances for part in i.gt_parts]
        found.append(("parts asked for without a mask, counted 0", parts.count(False)))
        for status in sorted({s.status for i in evaluation.instances for s in i.spans if s.status != "ok"}):
            n = sum(s.status == status for i in evaluation.instances for s in i.spans)
            found.append((f"phrases tagged but not drawn: {words(status)}", n))
    return found


def words(name):
    return name.replace("_", " ")
