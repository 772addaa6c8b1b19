"""The published numbers of the paper (D 6), from published.json beside this file, where every row names its source."""

import functools
import json
from pathlib import Path

FILE = Path(__file__).parent / "published.json"
# The paper's names of the question types -> ours. "Difference" is negative_with_label, not difference_* (the dataset card).
TYPES = {
    "identification_with_label": "Identification",
    "positive_with_label": "Intersection",
    "negative_with_label": "Difference",
    "part_to_whole": "Part-to-Whole",
    "whole_to_part": "Whole-to-Part",
}
SUBSETS = {"paco_lvis": "PACO-LVIS", "partimagenet": "PartImageNet", "pascal_part": "PascalPart"}  # file name -> subset
CORE = "partonomy"


@functools.cache
def load():
    """-> {"about", "sources": {letter: text}, "tables": {name: {"paper", "data", "cells", "rows"}}}, numbers in percent."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def rows(table):
    """Rows of a table: {"method", "training", "source", "values"}, and "subset" in the table of the subsets."""
    return load()["tables"][table]["rows"]


def label(row):
    """{"method": "PLUM-13B", "training": "fine-tuned"} -> "PLUM-13B (fine-tuned)"."""
    return f"{row['method']} ({row['training']})" if row["training"] not in ("", "chance") else row["method"]


def methods():
    """Labels of all methods, in the order of the file."""
    return list(dict.fromkeys(label(row) for table in load()["tables"].values() for row in table["rows"]))


def footnote(table):
    """Where the numbers of a table come from, as one sentence."""
    content = load()
    letters = dict.fromkeys(row["source"] for row in content["tables"][table]["rows"])
    by_source = {s: [label(r) for r in content["tables"][table]["rows"] if r["source"] == s] for s in letters}
    first, *others = letters
    text = f"Published numbers: {content['tables'][table]['paper']} of the paper; read from the {content['sources'][first]}"
    for letter in others:
        text += f"; {' and '.join(by_source[letter])}: {content['sources'][letter]}"
    return f"{text}."
