"""Tables of the report: the paper's shape, what may be compared, dashes for what older results do not have."""

import dataclasses
import json

import pytest
from report_fixtures import TYPES, make_evaluation

from plum_jax.errors import UserError
from plum_jax.report import published
from plum_jax.report.data import read_subject
from plum_jax.report.own import own_tables
from plum_jax.report.paper import paper_tables
from plum_jax.report.standing import dataset, reasons, sentence
from plum_jax.report.tables import as_json, as_lines, show


def evaluation(folder, **options):
    return read_subject([make_evaluation(folder, **options)]).evaluations[0]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return evaluation(tmp_path_factory.mktemp("e") / "mine")


def by_id(tables):
    assert len({t.id for t in tables}) == len(tables)
    return {t.id: t for t in tables}


def test_tables_are_rectangular(synthetic):
    for table in [*paper_tables([synthetic]), *own_tables([synthetic])]:
        for row in table.rows:
            assert len(row.heads) == len(table.heads), table.id
            assert len(row.cells) == len(table.columns), table.id
            assert all(i < len(table.notes) for i in row.notes)
        assert sum(width for _, width in table.groups) == len(table.columns)
        assert json.loads(json.dumps(as_json(table), allow_nan=False))["id"] == table.id


def test_cells_are_those_of_results_json(synthetic):
    table = by_id(paper_tables([synthetic]))["core_masks"]
    ours = {row.heads[1]: row.cells for row in table.rows if row.kind == "ours"}
    assert list(ours) == ["published", "middle", "end to end", "generation"]
    for column, kind in enumerate(published.TYPES):
        for place, how in enumerate(("micro", "macro")):
            groups = synthetic.results["protocols"]
            assert ours["published"][2 * column + place] == 100 * groups["published"][kind][f"mask_{how}"]["gmIoU-paired"]
            strict = groups["end_to_end"][kind][f"mask_{how}"]["gmIoU-paired_strict"]
            assert ours["end to end"][2 * column + place] == 100 * strict
    text = by_id(paper_tables([synthetic]))["core_text"]
    row = next(r for r in text.rows if r.kind == "ours" and r.heads[1] == "end to end")
    group = synthetic.results["protocols"]["end_to_end"]["part_to_whole"]
    wanted = [group["part_text"]["precision"], group["part_text"]["recall"], group["mc_part_text"]["accuracy"]]
    assert list(row.cells[9:13]) == [100 * x for x in [*wanted, group["mc_object_text"]["accuracy"]]]
    drawn = next(r for r in text.rows if r.kind == "random" and r.heads[1] == "drawn choices")
    assert drawn.cells[2] == pytest.approx(20.0) and drawn.cells[12] == pytest.approx(100 / 3)


def test_published_rows_stand_as_they_are_in_the_file(synthetic):
    tables = by_id(paper_tables([synthetic]))
    for name in ("core_masks", "core_text", "subset_masks", "reason", "vqa"):
        shown = [row.cells for row in tables[name].rows if row.kind in ("published", "random") and row.heads[1] == "published"]
        assert len(shown) == len(published.rows(name))
    plum = next(r for r in tables["core_masks"].rows if r.heads[0] == "PLUM-13B (fine-tuned)")
    assert plum.cells == (36.2, 41.6, 42.1, 45.9, 33.0, 39.4, 36.7, 40.8, 36.2, 39.8)


def test_what_may_be_compared(tmp_path, synthetic):
    assert dataset(synthetic) == "synthetic"
    assert any("drawn pictures" in reason for reason in reasons(synthetic, "published"))
    core = evaluation(tmp_path / "core", name="PARTONOMY-Core", split="val")
    assert dataset(core) == "partonomy" and reasons(core, "published") == []
    assert sentence(core, "published").startswith("Comparable") and "all_span" not in sentence(core, "published")
    listed = dataclasses.replace(core, results={**core.results, "settings": {"all_span_occurrences": False}})
    assert "all_span_occurrences" in sentence(listed, "published")
    train = dataclasses.replace(core, split="train")
    assert reasons(train, "published") == ["the train split; the published numbers are of val"]
    assert "correct answer" in reasons(core, "middle")[0]
    fewer = dataclasses.replace(core, results={**core.results, "settings": {"max_images": 3, "empty_union": "skip"}})
    assert len(reasons(fewer, "published")) == 2
    told = dataclasses.replace(core, results={**core.results, "command": "plum evaluate partonomy --max-images=5"})
    assert reasons(told, "published") == ["only the first images of the file (--max-images)"]
    skipped = dataclasses.replace(core, results={**core.results, "counts": {"skipped": {"image": 2, "type_not_answered": 9}}})
    assert reasons(skipped, "published") == ["2 questions skipped"]
    assert dataset(evaluation(tmp_path / "own", name="mine", stem="mine")) == "other"
    gone = dataclasses.replace(
        core, folder=tmp_path / "x/y/z/u/v/w", results={"data": {"path": "no/partonomy_qa_pairs_val.json"}}
    )
    assert dataset(gone) == "unknown"


def test_subsets_stand_in_their_own_table(tmp_path):
    paco = evaluation(tmp_path / "paco", name="PACO", stem="paco_lvis")
    tables = by_id(paper_tables([paco]))
    assert not tables["core_masks"].has_ours
    rows = tables["subset_masks"].rows
    at = next(i for i, row in enumerate(rows) if row.kind == "ours")
    assert rows[at - 1].heads == ("PLUM-13B (fine-tuned)", "published", "PACO-LVIS")
    assert len(rows[at].cells) == 6


def test_differences_from_a_published_row(synthetic):
    table = by_id(paper_tables([synthetic], "PLUM-13B (fine-tuned)"))["core_masks"]
    at = [i for i, row in enumerate(table.rows) if row.kind == "difference"]
    assert len(at) == 1 and table.rows[at[0]].heads[1] == "published"
    assert table.rows[at[0]].cells[1] == pytest.approx(table.rows[at[0] - 1].cells[1] - 41.6)
    assert show(-3.25, 1, "difference") == "\N{MINUS SIGN}3.2" and show(3.0, 1, "difference") == "+3.0"
    with pytest.raises(UserError, match="PLUM-13B"):
        paper_tables([synthetic], "PLUM-14B")


def test_older_results_show_dashes(tmp_path):
    old = evaluation(tmp_path / "old", full=False)
    results = json.loads(json.dumps(old.results))
    for name in ("middle", "generation"):
        del results["protocols"][name]
    del results["protocols"]["published"]["whole_to_part"]
    del results["protocols"]["published"]["part_to_whole"]["mask_macro"]
    old = dataclasses.replace(old, results=results)
    tables = by_id([*paper_tables([old]), *own_tables([old])])
    row = next(r for r in tables["core_masks"].rows if r.kind == "ours")
    assert row.cells[7:] == (None, None, None) and row.cells[6] is not None
    shown = next(r for r in as_lines(tables["core_masks"])["rows"] if r["kind"] == "ours")
    assert shown["cells"][7:] == ["–"] * 3
    for results in ({}, {"protocols": None}, {"protocols": {"published": {TYPES[0]: None}}}, {"protocols": {"end_to_end": 3}}):
        bare = dataclasses.replace(old, results=results)
        assert not any(t.has_ours for t in paper_tables([bare]))
        own_tables([bare])


def test_everything_measured_is_shown(synthetic):
    tables = by_id(own_tables([synthetic]))
    assert {"types", "beyond", "pairing", "floors", "measures", "intervals", "areas", "reliability", "counts"} == set(tables)
    beyond = next(r for r in tables["beyond"].rows if r.heads[::2] == ("identification with label", "end to end"))
    assert beyond.cells[2:4] == pytest.approx((90.0, 10.0)) and beyond.cells[5] == pytest.approx(50.0)
    names = {row.heads[1] for row in tables["measures"].rows}
    assert "absent parts: false mask rate" in names and not any("interval" in name for name in names)
    assert {row.heads[1] for row in tables["intervals"].rows} >= {"masks, published", "masks, end to end", "part accuracy"}
    assert all(row.cells == pytest.approx((25.0,) * 10) for row in tables["floors"].rows)
    for row in tables["intervals"].rows:
        value, low, high = row.cells
        assert 0 <= low <= value <= high <= 100


def test_plots_without_instances_come_from_results_json(synthetic):
    """plum score writes no instances without --out; the numbers are in results.json all the same."""
    bare = dataclasses.replace(synthetic, instances=[])
    a, b = by_id(own_tables([synthetic])), by_id(own_tables([bare]))
    assert [r.cells for r in b["reliability"].rows] == [pytest.approx(r.cells) for r in a["reliability"].rows]
    assert [r.cells[:2] for r in b["areas"].rows] == [pytest.approx(r.cells[:2]) for r in a["areas"].rows]


def test_counts_name_every_reason(tmp_path):
    e = evaluation(tmp_path / "a")
    counts = {"scored": 5, "skipped": {"image_unreadable": 2}, "missing": {}, "incomplete": {"choice_of_part": 1}}
    table = by_id(own_tables([dataclasses.replace(e, results={**e.results, "counts": counts})]))["counts"]
    held = {row.heads[0]: row.cells[0] for row in table.rows}
    assert held["skipped: image unreadable"] == 2 and held["incomplete: choice of part"] == 1
    assert held["missing"] == 0 and held["scored"] == 5
