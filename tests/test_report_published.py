"""The file of published numbers is consistent with itself: shapes, ranges, sources, one row a method."""

import pytest

from plum_jax.report import published

TABLES = published.load()["tables"]
WIDTHS = {"core_masks": (2,) * 5, "core_text": (3, 3, 3, 4, 4), "subset_masks": (2,) * 3}


def numbers(row):
    return [x for value in row["values"].values() for x in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("name", TABLES)
def test_every_number_is_a_percentage_with_a_source(name):
    for row in TABLES[name]["rows"]:
        assert all(x is None or 0 <= x <= 100 for x in numbers(row)), row
        assert any(x is not None for x in numbers(row)), row
        assert row["source"] in published.load()["sources"]
        assert row["training"] in ("zero-shot", "fine-tuned", "gt parts", "chance", "")


@pytest.mark.parametrize("name", TABLES)
def test_rows_have_one_shape_and_names_of_their_own(name):
    rows = TABLES[name]["rows"]
    assert len({tuple(row["values"]) for row in rows}) == 1
    if name in WIDTHS:
        for row in rows:
            assert tuple(len(v) for v in row["values"].values()) == WIDTHS[name], row
    keys = [(row.get("subset"), row["method"], row["training"]) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_tables_are_those_of_the_paper():
    assert {name: len(TABLES[name]["rows"]) for name in TABLES} == {
        "core_masks": 12, "core_text": 9, "subset_masks": 24, "reason": 12, "vqa": 4,
    }  # fmt: skip
    assert list(TABLES["core_masks"]["rows"][0]["values"]) == list(published.TYPES)
    subsets = [row["subset"] for row in TABLES["subset_masks"]["rows"]]
    assert set(subsets) == set(published.SUBSETS.values())
    assert all(subsets.count(name) == 8 for name in set(subsets))


def test_precision_recall_and_chance_agree_with_the_choices():
    chance = next(row for row in TABLES["core_text"]["rows"] if row["training"] == "chance")
    assert all(x == 20.0 for value in chance["values"].values() for x in value[2:])  # five choices


def test_labels_and_footnotes():
    assert "PLUM-13B (fine-tuned)" in published.methods()
    assert "Random" in published.methods()
    text = published.footnote("core_masks")
    assert "Table 2" in text and "Grounded SAM 2 (gt parts) and SegLLM (zero-shot)" in text
