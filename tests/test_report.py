"""The page of a plausible run, of half a run and of a hostile one."""

import json
import re

import pytest
from report_fixtures import TYPES, Page, make_run

from plum_jax.errors import UserError
from plum_jax.report import main, write_report
from plum_jax.report.analysis import by_area, by_part, confusion, pick_samples, pick_worst
from plum_jax.report.charts import line_chart
from plum_jax.report.data import read_run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("quickstart"))
    facts = write_report(folder, folder / "report.html")
    text = (folder / "report.html").read_text()
    return facts, text, Page(text)


def test_page_is_whole_and_light(report):
    facts, text, page = report
    assert not page.errors
    assert text.startswith("<!DOCTYPE html>")
    assert 24 <= facts["cards"] == len(page.all("article", **{"class": "card"})) - facts["worst"]
    assert facts["worst"] == 10
    assert facts["bytes"] < 6_000_000
    assert {a["id"] for a in page.all("section")} == {
        "headline",
        "types",
        "beside",
        "figures",
        "training",
        "samples",
        "worst",
        "confusion",
        "parts",
        "more",
        "run",
    }
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= set(ids)


def test_page_requests_nothing(report):
    _, text, page = report
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not page.all("script")
    assert not re.search(r"@import|url\(|https?://", text)


def test_page_is_readable_without_mouse_and_colour(report):
    _, _, page = report
    images = page.all("img")
    assert len(images) > 100
    assert all(a.get("alt") for a in images)
    phrases = page.all("span", **{"class": "phrase"})
    assert phrases
    assert all(a["tabindex"] == "0" for a in phrases)
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    words = " ".join(page.words)
    assert "right" in words and "wrong" in words and "✓" in words and "✗" in words


def test_hostile_text_is_escaped(tmp_path):
    folder = make_run(tmp_path / "run", images=4)
    path = folder / "run/eval/950/test/instances.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    evil = "<script>alert(1)</script>\"'><img src=//evil.example/x.png>"
    for row in rows:
        row.update(image_path=f"../{evil}", image_label=evil, instance_id=evil, question_type=evil, questions=[evil] * 2)
        row["choices"] = [evil + choice for choice in row["choices"]]
        row["end_to_end"]["answer"] = evil + row["end_to_end"]["answer"]
        for span in row["end_to_end"]["spans"]:
            span.update(phrase=evil, char=[0, len(evil)], status=evil)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((folder / "run/config.json").read_text())
    (folder / "run/config.json").write_text(json.dumps({**config, "name": evil, evil: evil}))
    write_report(folder, folder / "report.html")
    page = Page((folder / "report.html").read_text())
    assert not page.errors
    assert not page.all("script")
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert evil in "".join(page.words)


def test_no_spans_no_masks(tmp_path):
    folder = make_run(tmp_path / "run", images=4)
    path = folder / "run/eval/950/test/instances.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["end_to_end"].update(
            spans=[], gmiou_strict=0.0, pair_ious=dict.fromkeys(row["gt_parts"], 0.0), false_masks=0, masks=0
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n{}\n")
    facts = write_report(folder, folder / "report.html")
    assert facts["skipped"]["lines of instances.jsonl that are not readable"] == 2
    assert "No mask was drawn." in (folder / "report.html").read_text()


def test_parts_of_a_run(tmp_path):
    """Before is missing; metrics are missing; only metrics are there; the images are gone; one evaluation folder."""
    folder = make_run(tmp_path / "a", images=3, evaluations=((950, 0.9),))
    (folder / "run/metrics.csv").unlink()
    for path in (folder / "data/images").iterdir():
        path.unlink()
    facts = write_report(folder, folder / "report.html")
    text = (folder / "report.html").read_text()
    assert "untrained" not in text
    assert 'id="training"' not in text
    assert text.count("no image: ") == facts["cards"] + facts["worst"]
    assert write_report(folder / "run/eval/950/test", folder / "one.html")["cards"] == 9
    curves = make_run(tmp_path / "b", images=1, evaluations=())
    assert write_report(curves, curves / "report.html")["cards"] == 0
    assert write_report(curves / "run", curves / "report.html")["questions"] == 0


def test_command(tmp_path, capsys):
    folder = make_run(tmp_path / "a", images=3)
    assert main([str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(folder / "report.html")
    assert main([str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").exists()
    assert "r.html" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for arguments in ([str(tmp_path / "none")], [str(tmp_path / "empty")], [str(folder), "--out", str(tmp_path / "no/x.html")]):
        with pytest.raises(UserError):
            main(arguments)
    (folder / "run/config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        main([str(folder)])


def test_samples_cover_the_types_and_worst_are_worst(tmp_path):
    instances = read_run(make_run(tmp_path / "a", images=12)).after.instances
    samples = pick_samples(instances, 10, TYPES[1])
    assert len({i.id for i in samples}) == 10
    assert {i.question_type for i in samples} == set(TYPES)
    assert samples[0].question_type == TYPES[1]
    assert len({i.image_path for i in samples}) > 6
    assert len(pick_samples(instances, 10_000, TYPES[1])) == len(instances)
    worst = pick_worst(instances, 5)
    assert max(i.gmiou for i in worst) <= min(i.gmiou for i in instances if i not in worst)


def test_tables_count_every_part(tmp_path):
    instances = read_run(make_run(tmp_path / "a", images=12)).after.instances
    targets = sum(len(i.gt_parts) for i in instances)
    assert sum(b.count for b in by_area(instances)) == targets
    parts = by_part(instances)
    assert sum(p.targets for p in parts) == targets
    assert sum(p.masks for p in parts) == sum(len(i.spans) for i in instances)
    table = confusion(instances)
    assert table.wrong == sum(set(i.choice_parts[i.predicted]) != set(i.gt_parts) for i in instances)
    assert table.rows[-1] == "(nothing)" or "(nothing)" not in table.rows


def test_line_chart_says_its_numbers():
    svg = line_chart("loss <a>", [1, 2, 3, 4], [8.0, float("nan"), 2.0, 0.01], log=True)
    assert "8 at step 1, 0.01 at step 4" in svg
    assert "logarithmic" in svg
    assert "<a>" not in svg
    assert line_chart("x", [1], [1.0]) == ""
    assert "nan" not in line_chart("flat", [1, 2], [0.0, 0.0])


def test_curves_of_the_validation_have_titles():
    from plum_jax.report.sections.figures import CURVES
    from plum_jax.validation import MASKS, READING, TEXT

    titles = [CURVES[f"val_{name}"][0] for name in (*MASKS, *READING, *TEXT)]
    assert all(title.startswith("validation: ") for title in titles) and len(set(titles)) == len(titles)
