"""Measures that the paper does not have: boundaries, places of masks, absent parts, ways to pair, floors (D 5.2, D 5.4)."""

from plum_jax.report import published
from plum_jax.report.measures import ordered_types, words
from plum_jax.report.standing import PROTOCOLS, protocol_name
from plum_jax.report.tables import Column, Row, Table, percent

BEYOND = (  # heading, group, where it is below a protocol: {} is what the protocol pairs masks by
    ("per question", "boundary IoU", ("boundary_macro", "boundary_gmIoU-{}")),
    ("per mask", "boundary IoU", ("boundary_micro", "boundary_gmIoU-{}")),
    ("inside the object", "masks", ("mask_relations", "part_inside_object", "mean")),
    ("overlap of parts", "masks", ("mask_relations", "sibling_overlap", "mean")),
    ("false", "masks", ("false_mask_rate",)),
    ("of absent parts", "masks", ("absent_parts", "false_mask_rate")),
    ("P", "phrases", ("span", "precision")),
    ("R", "phrases", ("span", "recall")),
    ("F1", "phrases", ("span", "f1")),
    ("P", "part names by rules", ("part_text_rules", "precision")),
    ("R", "part names by rules", ("part_text_rules", "recall")),
    ("F1", "part names by rules", ("part_text_rules", "f1")),
)


def beyond_table(evaluations):
    """What the paper does not report, for every question type, model and protocol."""
    rows = []
    for kind in ordered_types(evaluations):
        for e in evaluations:
            for protocol in PROTOCOLS:
                pairing = "paired" if protocol == "published" else "paired_strict"
                places = [tuple(key.format(pairing) for key in path) for _, _, path in BEYOND]
                cells = tuple(percent(e.number(protocol, kind, *place)) for place in places)
                if any(cell is not None for cell in cells):
                    rows.append(Row((words(kind), e.label, protocol_name(protocol)), cells))
    columns = tuple(Column(name, group) for name, group, _ in BEYOND)
    intro = (
        "In percent. Boundary IoU: of the rims of masks. Inside the object: share of a mask that lies in the union of the "
        "object’s annotated parts. Overlap of parts: share of a mask that its siblings cover. False: share of the masks that "
        "show no visible part; of absent parts: share of the named parts that are not visible and got a mask."
    )
    return Table("beyond", "Beyond the paper", intro, ("question type", "model", "protocol"), columns, tuple(rows))


STRATEGIES = ("paired", "paired_strict", "greedy", "hungarian", "union")


def pairing_table(evaluations):
    """The same masks under every way to pair them with the targets, for the main type."""
    kind, rows = next(iter(ordered_types(evaluations)), ""), []
    for e in evaluations:
        for protocol in PROTOCOLS:
            strict = "strict" if protocol == "published" else "mask"
            groups = [
                (f"{strict if name == 'paired_strict' else 'mask'}_{how}", name)
                for name in STRATEGIES
                for how in ("micro", "macro")
            ]
            cells = tuple(percent(e.number(protocol, kind, group, f"gmIoU-{name}")) for group, name in groups)
            if any(cell is not None for cell in cells):
                rows.append(Row((e.label, protocol_name(protocol)), cells))
    columns = tuple(Column(how, words(name)) for name in STRATEGIES for how in ("micro", "macro"))
    intro = (
        "Mean IoU in percent. Paired: the first mask with the first part and so on; strict: by name, a missing mask counts 0; "
        "greedy and hungarian: by IoU. All but strict and union leave out what is missing or too much."
    )
    return Table("pairing", f"Ways to pair masks, {words(kind)}", intro, ("model", "protocol"), columns, tuple(rows))


def floor_table(evaluations):
    """Masks that look at nothing, on each question file once."""
    rows, seen = [], set()
    for e in evaluations:
        protocol = next((p for p in PROTOCOLS if e.group(p)), "")
        kinds = [kind for kind in published.TYPES if e.group(protocol, kind, "mask_baselines")]
        data = (e.results.get("data") or {}).get("sha256") or e.folder
        for name in e.group(protocol, kinds[0], "mask_baselines") if kinds and data not in seen else ():
            places = [
                (kind, "mask_baselines", name, f"mask_{how}", "gmIoU-paired_strict")
                for kind in published.TYPES
                for how in ("micro", "macro")
            ]
            rows.append(Row((words(name), e.label), tuple(percent(e.number(protocol, *place)) for place in places), "random"))
        seen.add(data)
    columns = tuple(Column(how, name) for name in published.TYPES.values() for how in ("micro", "macro"))
    intro = (
        "Mean IoU in percent of masks that do not look at the image: the floor under every number above. Object box, object "
        "region and another part are made from the annotation, which no model has."
    )
    return Table("floors", "Floors", intro, ("mask", "questions of"), columns, tuple(rows))
