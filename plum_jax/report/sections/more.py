"""Tables for who wants all of it."""

from plum_jax.report.tables import as_lines


def more(tables):
    """`tables`: {id: Table}. What the page folds away, in this order."""
    found = [as_lines(tables[id]) for id in ("beyond", "pairing", "floors", "measures") if id in tables]
    return {"tables": found} if found else None
