"""`plum score` of the other benchmarks: any model's file, official files, faults with their place, and no jax."""

import json
import subprocess
import sys

import benchmark_fixtures as fixtures
import numpy as np
import pytest

from plum_jax import cli, coco
from plum_jax.errors import UserError
from plum_jax.evaluation import benchmark_score
from plum_jax.evaluation.answered import Settings
from plum_jax.evaluation.asked import write_questions

NOTHING = np.zeros((40, 60), bool)


def reference(root, name, *argv):
    """-> (path of questions.jsonl, the questions)."""
    _, questions = fixtures.opened(name, "--data", root, *argv)
    write_questions(root / "questions.jsonl", questions)
    return root / "questions.jsonl", questions


def written(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def scored(name, predictions, questions, **options):
    return benchmark_score.score_files(name, predictions, questions, options.pop("settings", Settings()), **options)


@pytest.fixture
def grefcoco(tmp_path):
    return reference(fixtures.refer(tmp_path), "refer", "--dataset", "grefcoco")


def perfect(questions):
    return [{"id": q.id, "mask": q.target} for q in questions]


def test_a_perfect_model_is_perfect_and_a_silent_one_refuses(tmp_path, grefcoco):
    path, questions = grefcoco
    results, _ = scored("refer", written(tmp_path / "p.jsonl", perfect(questions)), path)
    numbers = results["protocols"]["open"]["all"]
    assert [numbers[key] for key in ("giou_mean_over_samples", "ciou_cumulative", "n_acc", "t_acc")] == [1.0] * 4
    assert "teacher_forced" not in results["protocols"] and numbers["n_without_span"] == 1
    silent = [{"index": i, "answer": {"text": "no", "spans": []}} for i in range(len(questions))]
    numbers = scored("refer", written(tmp_path / "p.jsonl", silent), path)[0]["protocols"]["open"]["all"]
    assert (numbers["n_acc"], numbers["t_acc"], numbers["ciou_cumulative"]) == (1.0, 0.0, 0.0)
    assert numbers["giou_mean_over_samples"] == pytest.approx(1 / 6) and numbers["n_without_span"] == 6


def test_masks_of_known_overlap(tmp_path, grefcoco):
    path, questions = grefcoco
    half = NOTHING.copy()
    half[0:30, 0:10] = True  # half of the left thing, 300 of 600 pixels
    entries = [{"id": q.id, "mask": coco.encode(half)} for q in questions]
    numbers = scored("refer", written(tmp_path / "p.jsonl", entries), path)[0]["protocols"]["open"]["all"]
    wanted = [0.5, 0.5, 0.0, 300 / 1200, 0.0, 0.5]  # left, it (left), it (right), both, nothing, it (left)
    assert numbers["giou_mean_over_samples"] == pytest.approx(np.mean(wanted))
    unions = [600, 600, 900, 1200, 300, 600]
    assert numbers["ciou_cumulative"] == pytest.approx((300 * 4) / sum(unions))
    assert (numbers["n_acc"], numbers["t_acc"]) == (0.0, 1.0)


def test_the_no_target_threshold_is_that_of_gres(tmp_path, grefcoco):
    path, questions = grefcoco
    speck = NOTHING.copy()
    speck[0, :49] = True
    entries = written(tmp_path / "p.jsonl", [{"id": q.id, "mask": coco.encode(speck)} for q in questions])
    for settings, n_acc in ((Settings(), 1.0), (Settings(no_target_pixels=0), 0.0), (Settings(no_target_pixels=49), 0.0)):
        assert scored("refer", entries, path, settings=settings)[0]["protocols"]["open"]["all"]["n_acc"] == n_acc


def test_both_protocols_of_a_file(tmp_path, grefcoco):
    path, questions = grefcoco
    answer = lambda q, mask: {"text": q.name, "spans": [{"phrase": q.name, "mask": mask}]}  # noqa: E731
    entries = [
        {"index": i, "answers": {"gt_answer_gt_spans": answer(q, q.target), "generated": answer(q, None)}}
        for i, q in enumerate(questions)
    ]
    protocols = scored("refer", written(tmp_path / "p.jsonl", entries), path)[0]["protocols"]
    assert protocols["teacher_forced"]["all"]["giou_mean_over_samples"] == 1.0
    assert protocols["open"]["all"]["t_acc"] == 0.0 and protocols["open"]["all"]["n_without_span"] == 0
    del entries[2]["answers"]["generated"]
    with pytest.raises(Exception, match="question 2, .* has answers in gt_answer_gt_spans; give every question"):
        scored("refer", written(tmp_path / "p.jsonl", entries), path)


def test_polygons_and_plain_run_lengths_are_masks_too(tmp_path, grefcoco):
    path, questions = grefcoco
    ring = [0, 0, 20, 0, 20, 30, 0, 30]
    entries = perfect(questions)
    entries[0]["mask"] = {"size": [40, 60], "polygons": [ring]}
    entries[1]["mask"] = {"size": [40, 60], "counts": [0, *([30, 10] * 19), 30, 1610]}
    numbers = scored("refer", written(tmp_path / "p.jsonl", entries), path)[1]
    assert numbers[1]["open"]["iou"] == 1.0 and numbers[0]["open"]["iou"] > 0.9


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.update(id="x"), r"line 1: \$.id is \"x\", which is no question"),
        (lambda e: e.update(index=99) or e.pop("id"), r"line 1: \$.index is 99; give a whole number from 0 to 5"),
        (lambda e: e.update(mask={"size": [1, 2], "counts": "11"}), r"mask.size is \[1, 2\], but the image is \[40, 60\]"),
        (lambda e: e.update(masks=e.pop("mask")), r"unknown field \"masks\"; did you mean 'mask'"),
        (lambda e: e.update(answer={"txt": "a"}) or e.pop("mask"), r"line 1: \$.answer has the unknown field \"txt\""),
        (lambda e: e.update(answer={"text": "a"}), r"has answer, mask; give one of"),
        (lambda e: e.update(answers={"own": {}}) or e.pop("mask"), r"answers is .*gt_answer_gt_spans and generated"),
        (lambda e: e.update(id=1), r"\$.id is 1"),
        (lambda e: e.update(id=["a"]), r"\$.id is \[\"a\"\], which is no question"),
    ],
)
def test_faults_name_line_and_field(tmp_path, grefcoco, change, message):
    path, questions = grefcoco
    entries = perfect(questions)
    change(entries[0])
    with pytest.raises(Exception, match=message):
        scored("refer", written(tmp_path / "p.jsonl", entries), path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target": {"size": [3], "counts": "11"}}, "line 1: target is not a mask in run lengths"),
        ({"target": {"size": [40, 60], "counts": "~~~"}}, "line 1: target is not a mask in run lengths"),
        ({"groups": [{}]}, r"line 1: groups is \[{}\]; give a list of texts"),
        ({"id": [5]}, r"line 1: id is \[5\]; give a text"),
        ({"kind": "words", "references": []}, "line 1: is a question for words without references"),
        ({"kind": "words", "references": ["a"]}, "has the kind words, which refer does not have"),
    ],
)
def test_faults_of_the_questions_name_their_file(tmp_path, grefcoco, change, message):
    path, questions = grefcoco
    first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(first), **change}) + "\n" + "".join(others), encoding="utf-8")
    with pytest.raises(UserError, match=f"questions.jsonl: .*{message}"):
        scored("refer", written(tmp_path / "p.jsonl", perfect(questions)), path)


def test_questions_alone_leave_the_files_of_a_run_alone(tmp_path, capsys):
    fixtures.refer(tmp_path)
    out = tmp_path / "out"
    argv = ["evaluate", "refer", f"--data={tmp_path}", "--dataset=grefcoco", f"--out={out}", "--questions-only"]
    assert cli.main(argv) == 0
    held = (out / "questions.jsonl").read_bytes(), (out / "run.json").read_bytes()
    (out / "predictions.jsonl").write_text("{}\n")
    assert cli.main([*argv, "--max-images=1"]) == 2
    assert "predictions.jsonl: belongs to a run of plum evaluate; give another --out" in capsys.readouterr().err
    assert held == ((out / "questions.jsonl").read_bytes(), (out / "run.json").read_bytes())
    for more in (["--split=random,random"], ["--seed=-1"]):
        name = "pope" if "split" in more[0] else "hallucination"
        assert cli.main(["evaluate", name, f"--data={tmp_path}", f"--out={tmp_path / 'x'}", "--questions-only", *more]) == 2
        assert more[0].partition("=")[0] in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_missing_and_skipped_predictions(tmp_path, grefcoco):
    path, questions = grefcoco
    entries = perfect(questions)
    entries[0] = {"id": questions[0].id, "skipped": "out of memory"}
    file = written(tmp_path / "p.jsonl", entries[:-1])
    with pytest.raises(Exception, match="p.jsonl: has nothing about question 5, .*--ignore-missing"):
        scored("refer", file, path)
    results, records = scored("refer", file, path, ignore_missing=True)
    assert results["counts"] == {"scored": 4, "skipped": {"out of memory": 1, "no_prediction": 1}}
    assert len(records) == results["data"]["n_instances"] == 6
    with pytest.raises(Exception, match=r"second prediction for question 1"):
        scored("refer", written(tmp_path / "p.jsonl", [*entries, entries[1]]), path)


def test_official_files_of_words(tmp_path):
    fixtures.textvqa(tmp_path)
    answers = written(tmp_path / "a.json", [])
    said = {34602: "Nokia", 34603: "8:00", 34604: "dog"}
    answers.write_text(json.dumps([{"question_id": key, "answer": text} for key, text in said.items()]))
    results, records = scored("vqa", answers, tmp_path / "textvqa/TextVQA_0.5.1_val.json")
    assert [r["official"] for r in records] == pytest.approx([1.0, 0.9, 0.0])
    assert results["protocols"]["official"]["all"] == {"accuracy": pytest.approx(1.9 / 3), "n_questions": 3}
    fixtures.gqa(tmp_path)
    answers.write_text(json.dumps([{"questionId": "201", "prediction": "snow"}, {"questionId": "202", "prediction": "Cat."}]))
    path = tmp_path / "gqa/questions/testdev_balanced_questions.json"
    protocols = scored("vqa", answers, path, settings=Settings(metric="contains"))[0]["protocols"]
    assert protocols["official"]["all"]["accuracy"] == 0.5 and protocols["official"]["query"]["accuracy"] == 1.0
    assert protocols["contains"]["all"]["accuracy"] == 1.0  # D38: "no" is in "snow"
    fixtures.pope(tmp_path)
    written(answers, [{"question": "?", "answer": "Yes, there is."}, {"question": "?", "answer": "Yes."}])
    pope = tmp_path / "pope/coco/coco_pope_popular.json"
    numbers = scored("pope", answers, pope)[0]["protocols"]["official"]["popular"]
    assert (numbers["accuracy"], numbers["precision"], numbers["recall"], numbers["yes_ratio"]) == (0.5, 0.5, 1.0, 1.0)
    with pytest.raises(Exception, match="coco_pope_popular.json: is a file of pope; use plum score pope"):
        scored("vqa", answers, pope)


def test_semantic_and_parts_take_masks(tmp_path):
    path, questions = reference(fixtures.semantic(tmp_path), "semantic", "--dataset", "ade20k")
    everything = {"size": [40, 60], "counts": [0, 2400]}
    entries = [{"id": q.id, "mask": everything} for q in questions]
    classes = scored("semantic", written(tmp_path / "p.jsonl", entries), path)[0]["protocols"]["open"]["all"]["classes"]
    assert classes["flag"]["iou_cumulative"] == classes["sky"]["iou_cumulative"] == pytest.approx(1 / 3)  # of what is labelled
    assert classes["wall"]["iou_cumulative"] == pytest.approx((1 + 1) / (3 + 1))
    with pytest.raises(Exception, match="has questions of 'ade20k', which reason does not have"):
        scored("reason", tmp_path / "p.jsonl", path)


def test_the_command_imports_no_jax(tmp_path, grefcoco, capsys):
    path, questions = grefcoco
    predictions = written(tmp_path / "p.jsonl", perfect(questions))
    argv = ["score", "refer", f"--predictions={predictions}", f"--reference={path}"]
    assert cli.main([*argv, f"--out={tmp_path / 'out'}"]) == 0
    assert "100.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/results.json").read_text())["counts"]["scored"] == 6
    assert cli.main([*argv, "--json", "--no-target-pixels=-1"]) == 2
    assert "--no-target-pixels -1: is negative" in capsys.readouterr().err
    code = (
        f"import sys; from plum_jax import cli; status = cli.main({[*argv, '--json']!r}); "
        "sys.exit(status or 10 * ('jax' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["benchmark"] == "refer"
