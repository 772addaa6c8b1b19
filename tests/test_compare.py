"""plum evaluate --compare: differences known beforehand, intervals, other data, the cases that changed, the command itself."""

import json
import subprocess
import sys

import numpy as np
import pytest

from plum_jax import cli, coco, compare, score
from plum_jax.errors import UserError
from plum_jax.evaluation import asked, benchmark_score, comparison
from plum_jax.evaluation.answered import Settings
from tests import benchmark_fixtures, eval_fixtures, score_fixtures

WITH_LABEL = "identification_with_label"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """-> (folder, question file, its entries): nine questions about three images."""
    folder = tmp_path_factory.mktemp("data")
    return folder, folder / "partonomy_qa_pairs_test.json", eval_fixtures.write_folder(folder)


def evaluation(folder, data, change=lambda i, made: made, **options):
    """A folder of plum score: perfect predictions, changed."""
    made = [change(i, score_fixtures.perfect(entry, i)) for i, entry in enumerate(data[2])]
    folder.mkdir(parents=True)
    path = score_fixtures.write(folder / "predictions.json", [item for item in made if item])
    results, records = score.score_files([path], data[1], **options)
    score.write_results(folder, results, records)
    return folder


def drop_mask(i, made):
    """The second question type is answered wrong, and of each second image one mask is missing."""
    if i % 3 == 1:
        made["answer"]["choice"] = (made["answer"]["choice"] + 1) % 5
    if i // 3 == 1:
        del made["answer"]["spans"][0]
    return made


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return evaluation(root / "worse", data, drop_mask), evaluation(root / "better", data)


def test_differences_are_paired(pair):
    report = compare.compare_folders(*pair)
    assert report["n_instances"] == 9 and report["n_images"] == 3
    assert report["counts"] == {"only_a": 0, "only_b": 0, "other_targets": 0, "skipped": {}}
    group = report["question_types"][WITH_LABEL]["end_to_end"]
    macro = group["mask_macro.gmIoU-paired_strict"]
    assert (macro["a"], macro["b"]) == (pytest.approx((1 + 2 / 3 + 1) / 3), 1.0)
    assert macro["difference"] == pytest.approx(1 / 9) and macro["interval_95"][0] == 0.0
    assert (macro["better"], macro["worse"], macro["equal"], macro["questions"]) == (1, 0, 2, 3)
    micro = group["mask_micro.gmIoU-paired_strict"]
    assert micro["a"] == pytest.approx(8 / 9) and micro["b"] == 1.0
    assert group["mc_part_text.accuracy"]["difference"] == 0.0 and group["mc_part_text.accuracy"]["equal"] == 3
    choice = report["question_types"]["part_to_whole"]["end_to_end"]["mc_part_text.accuracy"]
    assert (choice["a"], choice["b"], choice["interval_95"], choice["better"]) == (0.0, 1.0, [1.0, 1.0], 3)
    assert "mc_object_text.accuracy" not in group and "published" in report["question_types"][WITH_LABEL]
    assert "mask_macro.gmIoU-paired" not in report["question_types"][WITH_LABEL]["published"]  # neither has such masks


def test_the_other_way_round_is_the_negative(pair):
    forth, back = compare.compare_folders(*pair), compare.compare_folders(*pair[::-1])
    for kind, protocols in forth["question_types"].items():
        for protocol, metrics in protocols.items():
            for name, numbers in metrics.items():
                other = back["question_types"][kind][protocol][name]
                assert numbers["difference"] == pytest.approx(-other["difference"])
                assert numbers["interval_95"] == pytest.approx([-x for x in other["interval_95"][::-1]])
                assert (numbers["better"], numbers["worse"]) == (other["worse"], other["better"])


def test_an_evaluation_against_itself_differs_nowhere(pair):
    report = compare.compare_folders(pair[0], pair[0] / "instances.jsonl")
    numbers = [n for protocols in report["question_types"].values() for metrics in protocols.values() for n in metrics.values()]
    assert numbers and all(n["difference"] == 0 and n["interval_95"] == [0, 0] for n in numbers)
    assert all(n["better"] == n["worse"] == 0 for n in numbers) and report["cases"] == []


def test_less_is_better_for_false_masks(data, pair, tmp_path):
    def add_sky(i, made):
        made["answer"]["spans"].append({"phrase": "sky", "mask": made["answer"]["spans"][0]["mask"]})
        return made

    report = compare.compare_folders(evaluation(tmp_path / "sky", data, add_sky), pair[1])
    rate = report["question_types"][WITH_LABEL]["end_to_end"]["false_mask_rate"]
    assert rate["a"] == pytest.approx(3 / 12) and rate["difference"] == -rate["a"]
    assert (rate["better"], rate["worse"]) == (3, 0)


def test_the_cases_that_changed_most_come_first(pair, data):
    found = compare.compare_folders(*pair)["cases"]
    assert [case["instance_id"] for case in found] == [f"test/{i:06d}" for i in (4, 3, 5, 1, 7)]
    first = found[0]
    assert first["image_path"] == "images/1.png" and first["question_type"] == "part_to_whole"
    assert first["question"] == data[2][4]["question"] and first["parts"] == ["door", "handle", "wheel"]
    assert first["a"]["right"] is False and first["b"]["right"] is True and first["difference"] == pytest.approx(1 / 3)
    assert first["a"]["part_ious"] == {"door": 0.0, "handle": 1.0, "wheel": 1.0} and first["b"]["iou"] == 1.0
    assert first["b"]["answer"] == first["correct_answer"] != first["a"]["answer"]
    assert found[3]["difference"] == 0.0 and found[3]["a"]["right"] is False  # only the choice changed
    assert len(compare.compare_folders(*pair, most=2)["cases"]) == 2


def test_intervals_draw_whole_images_for_both(pair):
    """By hand: the questions of one type about three images, drawn together."""
    a, b = (compare.read(folder)[0] for folder in pair)
    found = comparison.compare(comparison.pair(a, b))[WITH_LABEL]["end_to_end"]["mask_macro.gmIoU-paired_strict"]
    change = np.array([0, 1 / 3, 0])
    draws = np.random.default_rng(0).integers(3, size=(1000, 3))
    np.testing.assert_allclose(found["interval_95"], np.quantile(change[draws].mean(1), [0.025, 0.975]), atol=1e-12)


def test_other_data_are_refused_unless_what_is_common_is_wanted(pair, data, tmp_path):
    fewer = evaluation(tmp_path / "fewer", data, lambda i, made: made if i != 4 else None, ignore_missing=True)
    with pytest.raises(
        UserError, match="1 questions are only in the first, 0 only in the second; pass --common to compare the 8"
    ):
        compare.compare_folders(pair[0], fewer)
    report = compare.compare_folders(pair[0], fewer, common=True)
    assert report["n_instances"] == 8 and report["counts"]["only_a"] == 1
    records, _ = compare.read(pair[1])
    records[0]["gt_masks"][0] = coco.encode(np.ones((20, 31), bool))
    other = tmp_path / "instances.jsonl"
    other.write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(UserError, match="1 have other target masks; pass --common to compare the 8"):
        compare.compare_folders(pair[0], other)
    assert compare.compare_folders(pair[0], other, common=True)["counts"]["other_targets"] == 1
    other.write_text(json.dumps({**records[0], "image_path": "elsewhere.png"}))
    for common in (False, True):
        with pytest.raises(UserError, match="evaluate both on the same question file"):
            compare.compare_folders(pair[0], other, common=common)


def test_places_in_the_file_and_names_of_splits_do_not_matter(pair, tmp_path):
    records, _ = compare.read(pair[1])
    moved = [{**record, "instance_id": f"whole/{100 - i:06d}"} for i, record in enumerate(records)]
    (tmp_path / "instances.jsonl").write_text("".join(json.dumps(r) + "\n" for r in moved))
    assert compare.compare_folders(pair[1], tmp_path)["n_instances"] == 9


def test_skipped_questions_are_counted(pair, tmp_path):
    records, _ = compare.read(pair[1])
    kept = {key: records[2][key] for key in compare.FIELDS}
    records[2] = {**kept, "skipped": "image_unreadable"}
    (tmp_path / "instances.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    report = compare.compare_folders(pair[1], tmp_path, common=True)
    assert report["n_instances"] == 8 and report["counts"]["skipped"] == {"image_unreadable": 1}
    assert compare.compare_folders(tmp_path, tmp_path)["counts"]["skipped"] == {"image_unreadable": 1}


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "holds no question"),
        (b"{", "line 1: not readable as JSON"),
        (b"\xff\xfe", "line 1: not readable as JSON"),
        (b"[" * 100_000, "line 1: not readable as JSON"),
        (b"[]", "line 1: is no scored question of partonomy, it has no instance_id"),
        (b'{"instance_id": "a/1", "image_path": "x", "image_label": "x", "question_type": "positive"}', "it has no questions"),
    ],
)
def test_what_is_no_evaluation_is_one_sentence(content, said, pair, tmp_path, capsys):
    (tmp_path / "instances.jsonl").write_bytes(content)
    assert cli.main(["evaluate", "--compare", str(pair[0]), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("plum evaluate: error: ") and error.count("\n") == 1


def test_the_command_prints_one_object_and_imports_no_jax(pair, tmp_path):
    code = (
        "import sys; from plum_jax import cli; status = cli.main(sys.argv[1:]); "
        "sys.exit(status or 3 * any(name in sys.modules for name in ('jax', 'flax', 'torch', 'tensorflow')))"
    )
    args = ["evaluate", "partonomy", "--compare", *map(str, pair), "--json", "--out", str(tmp_path / "c.json")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "c.json").read_text())


def test_the_command_prints_tables_and_cases(pair, capsys):
    assert cli.main(["evaluate", "--compare", *map(str, pair), "--cases", "3"]) == 0
    said = capsys.readouterr().out
    assert "9 questions about 3 images" in said and "mc_part_text.accuracy" in said and "+0.0 to +33.3" in said
    assert "Changed most (3 of 3 listed):" in said and "A IoU 0.67 wrong" in said and "--html compare.html" in said
    assert cli.main(["evaluate", "--compare", *map(str, pair), "--cases", "-1"]) == 2
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--compare", "--help"])
    assert stop.value.code == 0 and "--common" in capsys.readouterr().out
    assert cli.main(["evaluate", "--compare", str(pair[0])]) == 2
    assert "--compare" in capsys.readouterr().err


def test_the_page_shows_both_answers_with_their_masks(pair, data, tmp_path, capsys):
    page = tmp_path / "compare.html"
    assert cli.main(["evaluate", "--compare", *map(str, pair), "--html", str(page)]) == 0
    assert f"Wrote {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.count('<article class="card') == 10 and text.count("data:image/jpeg") == 20 and "<script" not in text
    assert text.count("data:image/png") > 10 and "images/1.png" in text and "mask_macro.gmIoU-paired_strict" in text
    nowhere = ["--html", str(page), "--images", str(tmp_path)]
    assert cli.main(["evaluate", "--compare", *map(str, pair), *nowhere]) == 0
    assert "no image: " in page.read_text(encoding="utf-8")
    assert cli.main(["evaluate", "--compare", *map(str, pair), "--html", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def words(folder, said):
    """A folder of plum score pope: the answers to six questions about one image."""
    root = benchmark_fixtures.pope(folder / "data")
    questions = list(benchmark_fixtures.opened("pope", "--data", root)[1])
    asked.write_questions(folder / "questions.jsonl", questions)
    score_fixtures.write(folder / "p.json", [{"index": i, "answer": {"text": text}} for i, text in enumerate(said)])
    results, records = benchmark_score.score_files("pope", folder / "p.json", folder / "questions.jsonl", Settings())
    score.write_results(folder, results, records)
    return folder


def test_answers_in_words_are_compared_by_table(tmp_path, capsys):
    a = words(tmp_path / "a", ["yes", "yes", "yes", "no", "yes", "no"])
    b = words(tmp_path / "b", ["yes", "no", "yes", "no", "no", "no"])
    report = compare.compare_folders(a, b)
    assert report["benchmark"] == "pope" and report["n_instances"] == 6
    accuracy = report["question_types"]["all"]["official"]["accuracy"]
    assert (accuracy["a"], accuracy["b"]) == (pytest.approx(5 / 6), pytest.approx(5 / 6))
    assert (accuracy["better"], accuracy["worse"], accuracy["equal"]) == (1, 1, 4)
    for name, side in (("a", a), ("b", b)):
        held = json.loads((side / "results.json").read_text())["protocols"]["official"]["random"]
        for metric in ("accuracy", "f1", "yes_ratio"):
            assert report["question_types"]["random"]["official"][metric][name] == pytest.approx(held[metric])
    assert len(report["cases"]) == 2 and report["cases"][0]["a"]["right"] != report["cases"][0]["b"]["right"]
    argv = ["evaluate", "--compare", str(a), str(b)]
    assert cli.main(argv) == 0
    assert "random, official" in capsys.readouterr().out
    assert cli.main([*argv, "--html", str(tmp_path / "x.html")]) == 2
    assert "has a page for partonomy only, not for pope; use --json or --out" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_masks_of_another_benchmark_are_compared(tmp_path):
    block = lambda i, u, pixels: {"intersection": i, "union": u, "iou": i / u if u else 1.0, "pixels": pixels, "answer": ""}  # noqa: E731
    about = {"image_path": "1.png", "dataset": "grefcoco", "kind": "mask", "groups": []}

    def side(name, blocks):
        records = [
            {"index": k, "id": f"q{k}", "name": "it", "has_target": k < 2, **about, "open": found}
            for k, found in enumerate(blocks)
        ]
        score.write_results(tmp_path / name, {"benchmark": "refer"}, records)
        return tmp_path / name

    a = side("a", [block(1, 4, 3), block(2, 4, 4), block(0, 5, 5)])
    b = side("b", [block(3, 4, 3), block(2, 4, 4), block(0, 0, 0)])
    report = compare.compare_folders(a, b)
    found = report["question_types"]["all"]["open"]
    assert (found["giou_mean_over_samples"]["a"], found["giou_mean_over_samples"]["b"]) == (0.25, 0.75)
    assert (found["ciou_cumulative"]["a"], found["ciou_cumulative"]["b"]) == (3 / 13, 5 / 8)
    assert (found["false_mask_rate"]["a"], found["false_mask_rate"]["better"]) == (1.0, 1)
    assert [case["instance_id"] for case in report["cases"]] == ["q2", "q0"]


def test_unlike_evaluations_are_refused(pair, tmp_path):
    other = words(tmp_path / "a", ["yes"] * 6)
    with pytest.raises(UserError, match="is an evaluation of partonomy, .* of pope; give two of the same benchmark"):
        compare.compare_folders(pair[0], other)


def test_part_names_of_generated_answers_are_compared(pair):
    def side(matches):
        records = compare.read(pair[1])[0]
        block = {"pair_ious": {}, "span_counts": None, "false_masks": 0, "masks": 0, "named_parts": {"exact": [matches, 4, 5]}}
        return [{**record, "generation": block} for record in records]

    found = comparison.compare(comparison.pair(side(2), side(3)))[WITH_LABEL]["generation"]
    assert (found["part_text.precision"]["a"], found["part_text.precision"]["b"]) == (0.5, 0.75)
    assert found["part_text.recall"]["difference"] == pytest.approx(0.2)
