"""A table of the report as data: the page, the JSON object and the LaTeX file show the same cells."""

from dataclasses import dataclass, field

DASH = "–"


@dataclass(frozen=True)
class Column:
    name: str
    group: str = ""  # heading over neighbouring columns
    digits: int = 1


@dataclass(frozen=True)
class Row:
    """`heads`: words that name the row. `cells`: a number or None for each column."""

    heads: tuple[str, ...]
    cells: tuple[float | None, ...]
    kind: str = "ours"  # ours, published, random or difference
    notes: tuple[int, ...] = ()  # indices into the notes of the table


@dataclass(frozen=True)
class Table:
    """Rectangular: every row has a head for each of `heads` and a cell for each column."""

    id: str
    title: str
    intro: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    source: str = ""  # of the published numbers

    @property
    def groups(self):
        """[(heading, number of columns under it)]."""
        found = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found

    @property
    def has_ours(self):
        return any(row.kind == "ours" for row in self.rows)


def show(value, digits, kind="ours"):
    """A cell as text. Differences carry their sign."""
    if value is None:
        return DASH
    text = f"{value:+,.{digits}f}" if kind == "difference" else f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def mark(index):
    """0 -> "a": how a row points at a note."""
    return chr(ord("a") + index) if index < 26 else f"a{index - 25}"


def percent(value):
    return None if value is None else 100.0 * value


def as_json(table):
    """Table -> a dictionary for JSON; cells stay as exact as they were computed."""
    return {
        "id": table.id,
        "title": table.title,
        "intro": table.intro,
        "columns": [{"group": column.group, "name": column.name} for column in table.columns],
        "rows": [
            {
                **dict(zip(table.heads, row.heads, strict=True)),
                "kind": row.kind,
                "cells": list(row.cells),
                "notes": [table.notes[i] for i in row.notes],
            }
            for row in table.rows
        ],
        "source": table.source,
    }


def as_lines(table):
    """Table -> what the page shows of it: cells as text."""
    rows = [
        {
            "heads": row.heads,
            "kind": row.kind,
            "marks": [mark(i) for i in row.notes],
            "cells": [show(v, column.digits, row.kind) for v, column in zip(row.cells, table.columns, strict=True)],
        }
        for row in table.rows
    ]
    grouped = any(column.group for column in table.columns)
    return {
        "table": table,
        "rows": rows,
        "groups": table.groups if grouped else [],
        "notes": [(mark(i), note) for i, note in enumerate(table.notes)],
    }


@dataclass
class Notes:
    """Collects the notes of a table; the same words get the same mark."""

    texts: list[str] = field(default_factory=list)

    def add(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)
