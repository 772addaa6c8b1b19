"""Our numbers beside the published ones."""

from plum_jax.report.tables import as_lines


def benchmarks(tables):
    """The tables of the other benchmarks."""
    found = [as_lines(table) for id, table in tables.items() if id.startswith("benchmark_")]
    return {"tables": found} if found else None


def beside(tables):
    """The paper's tables that have a row of ours, and the others, which the page folds away."""
    if not any(table.has_ours for table in tables):
        return None
    ours = [as_lines(table) for table in tables if table.has_ours]
    return {"tables": ours, "others": [as_lines(table) for table in tables if not table.has_ours]}
