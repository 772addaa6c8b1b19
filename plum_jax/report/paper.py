"""Our numbers in the shape of the paper's tables, the published ones above them (D 6.2 to D 6.5)."""

from plum_jax.errors import UserError
from plum_jax.report import published
from plum_jax.report.downstream import downstream_tables
from plum_jax.report.standing import PROTOCOLS, dataset, protocol_name, sentence
from plum_jax.report.tables import Column, Notes, Row, Table, percent

MASKS = {protocol: f"gmIoU-{'paired' if protocol == 'published' else 'paired_strict'}" for protocol in PROTOCOLS}
TEXT = (("part_text", "precision"), ("part_text", "recall"), ("mc_part_text", "accuracy"), ("mc_object_text", "accuracy"))
HEADS = ("method", "protocol", "data")
W2P_MASKS = (
    "Whole-to-Part masks: the released code of the paper cannot score them, and how the published ones came about is not known."
)


def paper_tables(evaluations, against=None):
    """The tables of the paper. `against`: label of a published method; rows of the difference from it are added.

    Raises:
      UserError: there is no such method.
    """
    if against is not None and against not in published.methods():
        raise UserError(f"--against {against!r}: is not a published method; use one of {', '.join(published.methods())}")
    ours = [e for e in evaluations if e.benchmark == "partonomy"]
    subsets = [e for e in ours if dataset(e) in published.SUBSETS]
    core = [e for e in ours if e not in subsets]
    found = [masks_table(core, against), text_table(core, against), subset_table(subsets, against)]
    return found + downstream_tables(evaluations)


def masks_table(evaluations, against=None):
    columns = tuple(Column(name, group) for group in published.TYPES.values() for name in ("micro", "macro"))
    rows, notes = _published_rows("core_masks", "Core", 2), Notes()
    for evaluation, protocol in _sources(evaluations):
        row = _ours(evaluation, protocol, _mask_cells(evaluation, protocol, published.TYPES), notes)
        if row and row.cells[-1] is not None:
            row = Row(row.heads, row.cells, row.kind, (*row.notes, notes.add(W2P_MASKS)))
        rows += _with_difference(row, rows, against)
    intro = "Mean IoU of part masks in percent; micro: over all masks, macro: over the means of questions. " + _explain(rows)
    return Table("core_masks", "Masks by question type (Table 2)", intro, HEADS, columns, tuple(rows), tuple(notes.texts),
                 published.footnote("core_masks"))  # fmt: skip


def _mask_cells(evaluation, protocol, types):
    places = [(kind, f"mask_{how}") for kind in types for how in ("micro", "macro")]
    return tuple(percent(evaluation.number(protocol, *place, MASKS[protocol])) for place in places)


def text_table(evaluations, against=None):
    """Part precision, recall, accuracy; object accuracy for the two types that ask for the object."""
    two = ("part_to_whole", "whole_to_part")
    columns, places = [], []
    for kind, group in published.TYPES.items():
        names = ("P", "R", "A", "OA")[: 4 if kind in two else 3]
        columns += [Column(name, group) for name in names]
        places += [(kind, path) for path in TEXT[: len(names)]]
    rows, notes = [], Notes()
    for row in published.rows("core_text"):
        cells = tuple(x for kind in published.TYPES for x in row["values"][kind])
        kind = "random" if row["method"] == "Random" else "published"
        rows.append(Row((published.label(row), "published", "Core"), cells, kind))
    for evaluation, protocol in _sources(evaluations):
        cells = tuple(percent(evaluation.number(protocol, kind, *path)) for kind, path in places)
        rows += _with_difference(_ours(evaluation, protocol, cells, notes), rows, against)
    rows += _random_rows(evaluations, places, rows)
    intro = (
        "In percent. P and R: precision and recall of the part names of the chosen answer, micro-averaged; A: the right list "
        "of parts; OA: the right object. " + _explain(rows)
    )
    return Table(
        "core_text", "Answers by question type (Table 3)", intro, HEADS, tuple(columns), tuple(rows), tuple(notes.texts),
        published.footnote("core_text"),
    )  # fmt: skip


def _random_rows(evaluations, places, rows):
    """The random baseline of each question file of ours, once: drawn choices for P and R, one over the choices for accuracy."""
    found = {}
    for e in evaluations if any(row.kind == "ours" for row in rows) else ():
        cells = tuple(percent(_chance(e, kind, path)) for kind, path in places)
        if any(cell is not None for cell in cells):
            found.setdefault((e.results.get("data") or {}).get("sha256") or e.folder, (e, cells))
    name = lambda e: f"random: questions of {e.label}" if len(found) > 1 else "random"  # noqa: E731
    return [Row((name(e), "drawn choices", _data_label(e)), cells, "random") for e, cells in found.values()]


def _chance(evaluation, kind, path):
    group, key = path
    if group == "part_text":
        return evaluation.number("published", kind, "random_part_text", key)
    held = evaluation.number("published", kind, "random_accuracy", group.split("_")[1])
    if held is not None:
        return held
    asked = [i for i in evaluation.instances if i.question_type == kind]
    sizes = [len(i.choices if group == "mc_part_text" else i.object_choices or ()) for i in asked]
    sizes = [n for n in sizes if n]
    return sum(1 / n for n in sizes) / len(sizes) if sizes else None


def subset_table(evaluations, against=None):
    types = [kind for kind in published.TYPES if kind in published.rows("subset_masks")[0]["values"]]
    columns = tuple(Column(name, published.TYPES[kind], 2) for kind in types for name in ("micro", "macro"))
    rows, notes = [], Notes()
    for name in published.SUBSETS.values():
        mine = [r for r in published.rows("subset_masks") if r["subset"] == name]
        block = [
            Row((published.label(r), "published", name), tuple(x for kind in types for x in r["values"][kind]), "published")
            for r in mine
        ]
        for evaluation, protocol in _sources([e for e in evaluations if published.SUBSETS[dataset(e)] == name]):
            row = _ours(evaluation, protocol, _mask_cells(evaluation, protocol, types), notes)
            block += _with_difference(row, block, against)
        rows += block
    intro = "Mean IoU of part masks in percent, on the subsets made from other data sets. " + _explain(rows)
    return Table("subset_masks", "Masks on the other subsets", intro, HEADS, columns, tuple(rows), tuple(notes.texts),
                 published.footnote("subset_masks"))  # fmt: skip


def _published_rows(table, data, width):
    rows = []
    for row in published.rows(table):
        cells = tuple(x for kind in published.TYPES for x in row["values"].get(kind, [None] * width))
        rows.append(Row((published.label(row), "published", data), cells, "published"))
    return rows


def _sources(evaluations):
    """Every evaluation with every protocol that it has."""
    return [(e, p) for e in evaluations for p in PROTOCOLS if e.group(p)]


def _ours(evaluation, protocol, cells, notes):
    """None for a row without a number."""
    if all(cell is None for cell in cells):
        return None
    heads = (f"ours: {evaluation.label}", protocol_name(protocol), _data_label(evaluation))
    return Row(heads, cells, "ours", (notes.add(sentence(evaluation, protocol)),))


def _data_label(evaluation):
    kind = dataset(evaluation)
    name = {"partonomy": "Core", "synthetic": "synthetic", "other": "own", "unknown": "unknown", **published.SUBSETS}[kind]
    return f"{name}, {evaluation.split}" if evaluation.split else name


def _with_difference(row, rows, against):
    """[row], and below a row of the published protocol its difference from a published one of the same table."""
    if row is None:
        return []
    other = row.heads[1] == PROTOCOLS["published"][0] and next(
        (r for r in rows if r.kind == "published" and r.heads[0] == against), None
    )
    if not other:
        return [row]
    cells = tuple(None if a is None or b is None else a - b for a, b in zip(row.cells, other.cells, strict=True))
    return [row, Row((f"difference from {against}", row.heads[1], row.heads[2]), cells, "difference", row.notes)]


def _explain(rows):
    """What the protocols in a table mean."""
    used = [key for key, (name, _) in PROTOCOLS.items() if any(row.heads[1] == name for row in rows)]
    return " ".join(f"{PROTOCOLS[key][0].capitalize()}: {PROTOCOLS[key][1]}." for key in used)
