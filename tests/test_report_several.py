"""Several evaluations side by side, other benchmarks, and the command with its three outputs."""

import json
import re

import pytest
from report_fixtures import Page, make_evaluation, make_run

from plum_jax.errors import UserError
from plum_jax.report import main, write_report
from plum_jax.report.data import read_subject


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return [make_evaluation(root / name / "eval", skill=skill, data=root / "data") for name, skill in (("a", 0.3), ("b", 0.9))]


def sections(page):
    return [a["id"] for a in page.all("section")]


def test_page_of_two(pair, tmp_path):
    facts = write_report(pair, tmp_path / "two.html")
    text = (tmp_path / "two.html").read_text()
    page = Page(text)
    assert not page.errors
    assert sections(page) == ["overview", "types", "beside", "figures", "same", "more", "run"]
    words = "".join(page.words)
    assert "a/eval" in words and "b/eval" in words and "Not the same questions" not in words
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    cards = page.all("article", **{"class": "card"})
    assert len(cards) == 2 * (8 + 6)
    assert all(a["aria-label"].startswith(("a/eval: ", "b/eval: ")) for a in cards)
    assert [e["label"] for e in facts["evaluations"]] == ["a/eval", "b/eval"]
    assert not page.all("script") and not re.search(r"@import|url\(|https?://", text)
    marks = {m for a in page.all("g", **{"class": "mark"}) for m in a["class"].split()}
    assert {"s0", "s1"} <= marks


def test_questions_that_differ_are_said(pair, tmp_path):
    other = make_evaluation(tmp_path / "other", seed=5)
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps({**results, "data": {**results["data"], "sha256": "e" * 64}}))
    write_report([pair[0], other], tmp_path / "two.html")
    assert "Not the same questions" in (tmp_path / "two.html").read_text()


def test_a_run_stands_beside_an_evaluation(pair, tmp_path):
    run = make_run(tmp_path / "run", images=3)
    subject = read_subject([run, pair[1]], ["run", "other"])
    assert [e.step for e in subject.evaluations] == [950, None]
    assert [e.label for e in subject.evaluations] == ["run", "other"]


def test_command_writes_page_json_and_latex(pair, tmp_path, capsys):
    out, tex = tmp_path / "c.html", tmp_path / "c.tex"
    arguments = [*map(str, pair), "--out", str(out), "--latex", str(tex), "--names", "base, tuned", "--json"]
    assert main([*arguments, "--against", "PLUM-13B (fine-tuned)"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert out.is_file() and tex.is_file()
    tables = {t["id"]: t for t in facts["tables"]}
    assert {"core_masks", "core_text", "subset_masks", "reason", "vqa", "types", "intervals", "counts"} <= set(tables)
    kinds = [row["kind"] for row in tables["core_masks"]["rows"]]
    assert kinds.count("ours") == 8 and kinds.count("difference") == 2 and kinds.count("published") == 12
    assert tables["core_masks"]["rows"][-1]["method"] == "ours: tuned"
    assert "drawn pictures" in tables["core_masks"]["rows"][-1]["notes"][0]
    assert facts["evaluations"][1]["checkpoint"]["sha256"] == f"{900:064x}"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ([], "--out is missing"),
        (["--out", "x.html", "--names", "one"], "--names one"),
        (["--out", "x.html", "--names", "one,one"], "--names one,one"),
        (["--out", "no/such/x.html"], "no/such/x.html"),
        (["--out", "x.html", "--latex", "no/such/x.tex"], "--latex"),
        (["--out", "x.html", "--against", "GPT"], "--against 'GPT'"),
    ],
)
def test_wrong_use_is_one_sentence(pair, tmp_path, monkeypatch, more, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(word)):
        main([*map(str, pair), *more])
    assert not list(tmp_path.iterdir())


def test_folders_must_be_evaluations_and_different(pair, tmp_path):
    with pytest.raises(UserError, match="given twice"):
        read_subject([pair[0], pair[0]])
    curves = make_run(tmp_path / "curves", images=1, evaluations=())
    with pytest.raises(UserError, match="holds no evaluation"):
        read_subject([pair[0], curves])
    with pytest.raises(UserError, match="does not exist"):
        read_subject([pair[0], tmp_path / "none"])


def test_questions_that_were_skipped_and_answers_without_places(tmp_path):
    """Records of plum score: a question without a prediction, phrases without a place in the text, no choice made."""
    folder = make_evaluation(tmp_path / "e")
    rows = [json.loads(line) for line in (folder / "instances.jsonl").read_text().splitlines()]
    rows[0] = {**{k: rows[0][k] for k in ("instance_id", "image_path", "image_label", "question_type")}, "skipped": "image"}
    for row in rows[4:]:
        for span in row["end_to_end"]["spans"]:
            span["char"] = None
    rows[2].update(predicted=None, end_to_end=None)
    rows[3].update(end_to_end=None, generation=None, middle=None)
    (folder / "instances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = write_report(folder, folder / "report.html")
    assert facts["skipped"]["lines of instances.jsonl that are not readable"] == 0
    assert facts["questions"] == len(rows) - 1
    assert "Drawn, not in the text:" in (folder / "report.html").read_text()
    shown = {i.id: i for i in read_subject([folder]).after.instances}
    assert shown["q2"].protocol == "generation" and shown["q3"].protocol == "published"


def benchmark(folder, name, dataset, protocols, split="val", checkpoint="c"):
    folder.mkdir(parents=True)
    results = {"benchmark": name, "dataset": dataset, "split": split, "checkpoint": {"path": "run", "sha256": checkpoint * 64},
               "data": {"path": "data", "sha256": "d" * 64}, "protocols": protocols,
               "counts": {"scored": 9, "skipped": {}, "left_out": {"no mask": 1}}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "instances.jsonl").write_text('{"name": "q", "said": "yes"}\n')
    return folder


def test_other_benchmarks(tmp_path):
    numbers = {"giou_mean_over_samples": 0.5, "ciou_cumulative": 0.625, "n_acc": None, "n_samples": 9}
    folders = [
        benchmark(tmp_path / "reason", "reason", "reason_seg", {p: {"all": numbers} for p in ("teacher_forced", "open")}),
        benchmark(tmp_path / "text", "vqa", "textvqa", {"official": {"all": {"accuracy": 0.25, "n_questions": 9}}}),
        benchmark(tmp_path / "pope", "pope", "pope", {"official": {"all": {"accuracy": 0.75}, "random": {"accuracy": 1.0}}}),
        benchmark(tmp_path / "gqa", "vqa", "gqa", {"contains": {"all": {"accuracy": 0.5}}}, checkpoint="e"),
    ]
    facts = write_report(folders, tmp_path / "b.html", latex=tmp_path / "b.tex")
    tables = {t["id"]: t for t in facts["tables"]}
    ours = [row for row in tables["reason"]["rows"] if row["kind"] == "ours"]
    assert [row["cells"] for row in ours] == [[50.0, 62.5], [50.0, 62.5]]
    assert "val" in ours[0]["notes"][0] and "Not comparable" in ours[1]["notes"][0]
    ours = [(row["method"], row["cells"]) for row in tables["vqa"]["rows"] if row["kind"] == "ours"]
    assert ours == [("ours: text", [25.0, None, 75.0]), ("ours: gqa", [None, 50.0, None])]  # one row a checkpoint
    assert [c["name"] for c in tables["benchmark_reason"]["columns"]][-1] == "n samples"
    assert tables["benchmark_reason"]["rows"][0]["cells"] == [50.0, 62.5, 9.0]
    page = Page((tmp_path / "b.html").read_text())
    assert not page.errors
    assert sections(page) == ["overview", "benchmarks", "beside", "run"]
    assert write_report(folders[0], tmp_path / "one.html")["cards"] == 0
