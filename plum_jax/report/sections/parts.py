"""Part names confused, poor parts, masks of parts that are not visible."""

from plum_jax.report import analysis


def confusion(subject):
    if subject.after is None or not subject.after.instances:
        return None
    table = analysis.confusion(subject.after.instances)
    return {
        "table": table,
        "nothing": analysis.NOTHING,
        "heat_max": max((n for row in table.cells for n in row), default=1) or 1,
        "n_questions": len(subject.after.instances),
    }


def parts(subject):
    if subject.after is None or not subject.after.instances:
        return None
    found = analysis.by_part(subject.after.instances)
    false = sorted((p for p in found if p.false_masks), key=lambda p: (-p.false_masks, p.name))
    return {
        "areas": analysis.by_area(subject.after.instances),
        "parts": found,
        "false_parts": false[:8],
        "n_masks": sum(p.masks for p in found),
        "n_false": sum(p.false_masks for p in found),
    }
