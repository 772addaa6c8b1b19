"""All tables of ours that are not in the paper's shape."""

from plum_jax.report import beyond, downstream, measures


def own_tables(evaluations):
    """The tables that have a row."""
    partonomy = [e for e in evaluations if e.benchmark == "partonomy"]
    found = [
        *downstream.benchmark_tables(evaluations),
        measures.types_table(partonomy),
        beyond.beyond_table(partonomy),
        beyond.pairing_table(partonomy),
        beyond.floor_table(partonomy),
        measures.leaves_table(partonomy),
        measures.interval_table(partonomy),
        measures.area_table(partonomy),
        measures.reliability_table(partonomy),
        measures.counts_table(evaluations),
    ]
    return [table for table in found if table.rows]
