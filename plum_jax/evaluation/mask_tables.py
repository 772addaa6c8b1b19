"""Scored mask questions -> the tables of a benchmark: protocols side by side, and in each the groups of questions."""

from plum_jax.evaluation.segments import summary

TEACHER_FORCED, OPEN = "teacher_forced", "open"
MASK_COLUMNS = ("giou_mean_over_samples", "ciou_cumulative", "n_acc", "t_acc", "n_samples", "n_without_span")


def by_group(records):
    """{"all": records, group: those of the group}, groups in alphabetical order."""
    groups = sorted({group for record in records for group in record["groups"]})
    return {"all": records, **{name: [r for r in records if name in r["groups"]] for name in groups}}


def of_protocol(records, protocol):
    """Records that a protocol answered -> flat dictionaries for `segments.summary`."""
    keys = ("name", "image_path", "has_target", "groups")
    return [{**{key: r[key] for key in keys}, **r[protocol]} for r in records if protocol in r]


def mask_tables(records, *more):
    """-> {protocol: {group: numbers}}; `more`: functions whose numbers are added to those of `summary`."""
    tables = {}
    for protocol in (TEACHER_FORCED, OPEN):
        answered = of_protocol(records, protocol)
        if answered:
            tables[protocol] = {
                name: {key: value for function in (summary, *more) for key, value in function(some).items()}
                for name, some in by_group(answered).items()
            }
    return tables
