"""The numbers at the top of the page: tiles and every question type, or several evaluations beside one another."""

import itertools
import math
from dataclasses import dataclass

from plum_jax.report.lenient import dictionary, number, pair
from plum_jax.report.measures import MAIN_TYPE, columns_of, ordered_types, types_table, words
from plum_jax.report.standing import protocol_name
from plum_jax.report.tables import as_lines

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


@dataclass(frozen=True)
class Tile:
    name: str
    explain: str
    value: float | None
    before: float | None
    target: float | None
    lower: bool
    interval: tuple | None  # 95 %, bootstrap over images

    @property
    def met(self):
        if self.target is None:
            return None
        return self.value is not None and (self.value <= self.target if self.lower else self.value >= self.target)


@dataclass(frozen=True)
class Row:
    """One line of the table of question types; `before` and `after` hold a number or None for each column."""

    name: str
    n: int
    after: list
    before: list
    main: bool = False


def headline(subject):
    """Tiles of the main question type, from the summary of results.json: nothing is computed twice."""
    if subject.after is None:
        return None
    types = _by_type(subject.after)
    if not types:
        return None
    main = MAIN_TYPE if MAIN_TYPE in types else next(iter(types))
    earlier = _by_type(subject.before).get(main, {}) if subject.before else {}
    held = dictionary(subject.after.group("end_to_end", main, "interval_95"))
    aims = subject.name == "tiny" and main == MAIN_TYPE
    tiles = [
        Tile(
            name,
            explain,
            number(types[main].get(key)),
            number(earlier.get(key)),
            target if aims else None,
            lower,
            pair(held.get(key)),
        )
        for key, name, explain, target, lower in HEADLINE
    ]
    untrained = subject.before is not None and subject.before.step == 0
    return {"title": words(main).capitalize(), "tiles": tiles, "before": "untrained" if untrained else "before",
            "compare": subject.before is not None}  # fmt: skip


def _by_type(evaluation):
    held = dictionary(dictionary(evaluation.results.get("summary")).get("by_question_type"))
    return {kind: numbers for kind, numbers in held.items() if isinstance(numbers, dict)}


def types(subject):
    """Every question type: before and after, with bars, or as a plain table of several evaluations."""
    if subject.several:
        table = types_table([e for e in subject.evaluations if e.benchmark == "partonomy"])
        return {"table": as_lines(table)} if table.rows else None
    after, before = subject.after, subject.before
    if after is None or after.benchmark != "partonomy" or not after.types:
        return None
    columns = columns_of([after])
    numbers = lambda e, kind: [e.number(path[0], kind, *path[1:]) if e else None for _, path in columns]  # noqa: E731
    rows = [
        Row(kind, _questions(after, kind), numbers(after, kind), numbers(before, kind), kind == MAIN_TYPE)
        for kind in ordered_types([after])
    ]
    instances = after.instances
    return {
        "table": None,
        "rows": rows,
        "columns": [name for name, _ in columns],
        "groups": [(protocol_name(key), len(list(group))) for key, group in itertools.groupby(path[0] for _, path in columns)],
        "compare": before is not None,
        "before_step": "untrained" if before is not None and before.step == 0 else f"step {before.step}" if before else "",
        "after_step": f"step {after.step}" if after.step is not None else "training",
        "n_choices": len(instances[0].choices) if instances else 0,
        "chance": _mean([1 / len(i.choices) for i in instances if i.choices]),
        "object_chance": _mean([1 / len(i.object_choices) for i in instances if i.object_choices]),
    }


def _questions(evaluation, kind):
    held = number(_by_type(evaluation).get(kind, {}).get("n_instances"))
    return held if held is not None else sum(i.question_type == kind for i in evaluation.instances)


def overview(subject):
    """Several evaluations: what each is of, and whether they are of the same questions."""
    if not subject.several:
        return None
    rows = []
    for series, e in enumerate(subject.evaluations):
        data, checkpoint, counts = (dictionary(e.results.get(k)) for k in ("data", "checkpoint", "counts"))
        rows.append(
            {"series": series, "label": e.label, "benchmark": e.benchmark, "split": e.split or "–",
             "questions": number(counts.get("scored")) or len(e.instances),
             "checkpoint": short_hash(checkpoint.get("sha256")), "data": short_hash(data.get("sha256"))}
        )  # fmt: skip
    hashes = {(r["benchmark"], r["data"]) for r in rows}
    per_benchmark = {}
    for benchmark, data in hashes:
        per_benchmark.setdefault(benchmark, set()).add(data)
    differ = sorted(b for b, found in per_benchmark.items() if len(found) > 1)
    return {"rows": rows, "differ": differ}


def short_hash(text):
    return str(text)[:12] if text else "–"


def _mean(values):
    return math.fsum(values) / len(values) if values else None
