"""Evaluation of a folder: structure of what is written, independence of batching, scoring of known masks, errors."""

import concurrent.futures
import dataclasses
import itertools
import json
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from plum_jax import checkpoint_flags, cli, coco, evaluate, score
from plum_jax.errors import UserError
from plum_jax.evaluation import calibration, partonomy, runner
from plum_jax.evaluation.choosing import PUBLISHED, choices_of
from plum_jax.evaluation.outcome import Masks, Outcome, prediction_of
from plum_jax.evaluation.prediction import GT_SPANS, OWN, Prediction
from plum_jax.evaluation.question_set import select
from plum_jax.evaluation.rows import Group
from plum_jax.evaluation.targets import targets_of
from plum_jax.inference import Model
from plum_jax.loading import LoadedModel
from tests import eval_fixtures

GROUPS = ("mask_macro", "mask_micro", "part_text", "random_part_text", "mc_part_text", "mc_object_text")


@pytest.fixture(scope="module")
def model():
    return Model(eval_fixtures.loaded())


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """-> (folder, out, entries, results, records) of one evaluation."""
    folder = tmp_path_factory.mktemp("data")
    entries = eval_fixtures.write_folder(folder)
    out = folder / "out"
    results = evaluate.evaluate_folder(model, folder, "test", out, log=None)
    return folder, out, entries, results, read(out)


def read(out):
    return [json.loads(line) for line in (out / "instances.jsonl").read_text().splitlines()]


def end_to_end_scores(record):
    """Scores of the part answers: after the predicted object, where that was asked for first."""
    return record["second_scores"] if record["question_type"] == "whole_to_part" else record["scores"]


def test_results_have_the_agreed_structure(run):
    _, out, entries, results, records = run
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["data"]["n_instances"] == results["counts"]["scored"] == len(records) == len(entries)
    assert set(results["protocols"]) == {"published", "middle", "end_to_end", "generation"}
    for kind in ("identification_with_label", "part_to_whole", "whole_to_part"):
        for protocol in ("published", "end_to_end"):
            assert set(GROUPS) <= set(results["protocols"][protocol][kind])
        macro = results["protocols"]["published"][kind]["mask_macro"]
        assert set(macro) == {"gmIoU-paired", "gmIoU-greedy", "gmIoU-hungarian", "gmIoU-union"}
        asked = results["protocols"]["published"][kind]["mc_object_text"]["total"]
        assert asked == (0 if kind == "identification_with_label" else 3)
    summary = results["summary"]
    assert set(summary) == {*partonomy.SUMMARY_KEYS, "by_question_type"}
    assert summary["n_instances"] == 3 and summary["n_skipped"] == 0
    assert summary["by_question_type"]["identification_with_label"]["object_accuracy"] is None


def test_records_agree_with_the_questions(run):
    _, _, entries, _, records = run
    for record, entry in zip(records, entries, strict=True):
        assert record["questions"][0] == (
            entry["object_question"] if "whole_to" in entry["question_type"] else entry["question"]
        )
        assert len(record["questions"]) == (2 if entry["object_question"] else 1)
        assert record["correct"] == entry["answer_types"].index("correct")
        assert record["predicted"] == int(np.argmin(end_to_end_scores(record)["answer_mean"]))
        assert record["predicted_published"] == int(np.argmin(record["scores"]["full_mean"]))
        assert [s["phrase"] for s in record["published"]["spans"]] == record["gt_parts"]
        for span, truth in zip(record["published"]["spans"], record["gt_masks"], strict=True):
            assert coco.decode(span["mask"]).shape == coco.decode(truth).shape
        end = record["end_to_end"]
        assert end["answer"] == entry["answer_choices"][record["predicted"]]
        for span in end["spans"]:
            assert end["answer"][slice(*span["char"])] == span["phrase"]
            assert (span["part"] is None) == (span["iou"] is None)
        assert set(end["pair_ious"]) == set(record["gt_parts"])
        assert end["span_counts"]["target"] == len(record["choice_parts"][record["predicted"]])


def test_the_batches_do_not_matter(run, model, tmp_path):
    folder, _, _, _, records = run
    evaluate.evaluate_folder(model, folder, "test", tmp_path, log=None, sizes=runner.Sizes(images=2, questions=3, masks=5))
    for a, b in zip(records, read(tmp_path), strict=True):
        for name in runner.MEASURES:
            np.testing.assert_allclose(a["scores"][name], b["scores"][name], rtol=1e-4)
        assert a["predicted"] == b["predicted"] and a["end_to_end"]["span_counts"] == b["end_to_end"]["span_counts"]
        assert a["published"]["gmiou"] == pytest.approx(b["published"]["gmiou"], abs=0.02)


def test_the_order_of_the_choices_does_not_matter(run, model, tmp_path):
    """Reversed choices: the same answers by text, the same metrics (D 7.5, test 10)."""
    folder, _, entries, results, records = run
    for entry in entries:
        for field in [f for f in entry if f.startswith(("answer_", "object_answer_")) and entry[f]]:
            entry[field] = entry[field][::-1]
    eval_fixtures.write_questions(folder, entries, split="reversed")
    again = evaluate.evaluate_folder(model, folder, "reversed", tmp_path, log=None)
    for a, b in zip(records, read(tmp_path), strict=True):
        assert a["choices"][a["predicted"]] == b["choices"][b["predicted"]]
    for key in ("part_accuracy", "span_f1", "gmiou_macro", "object_accuracy"):
        assert again["summary"][key] == pytest.approx(results["summary"][key], abs=0.02)


def oracle(model, folder, source, *, keep):
    """Outcomes whose own spans are the constructed ones with the target masks; only the first `keep` of each are tagged."""
    from data_pipelines.partonomy.records import read_questions

    questions = read_questions(source)[::3]  # the identification questions
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        for outcome in itertools.chain(*runner.Runner(model, questions, source).chunks(folder, threads)):
            group, given = outcome.groups["part"], outcome.answers[GT_SPANS]
            hw = outcome.images.original_hw[outcome.image]
            targets = targets_of(outcome.question, hw, source, outcome.index).masks
            outcome.scores["part"] = {name: [float(not r.choice.correct) for r in group.rows] for name in runner.MEASURES}
            given.masks.low_res = [coco.decode(targets[part]) for part in given.parts]
            few = {name: getattr(given, name)[:keep] for name in ("ranges", "chars", "parts", "confidence")}
            counts = {"matched": keep, "predicted": keep, "target": len(given.parts)}
            masks = Masks(given.masks.embeds[:keep], given.masks.low_res[:keep])
            outcome.answers[OWN] = dataclasses.replace(given, **few, masks=masks, counts=counts, bio=np.zeros((3, 2), int))
            yield outcome


@pytest.mark.parametrize("keep", [1, 2])
def test_known_masks_score_what_they_should(run, model, monkeypatch, keep):
    """Perfect masks for the first `keep` parts: published 1, strict keep / n, no false mask."""
    folder, source = run[0], run[0] / "partonomy_qa_pairs_test.json"
    monkeypatch.setattr(model, "mask", lambda mask, sure, images, index: (mask, float(mask.any())))
    scorer = partonomy.Scorer("test", source, {"mc_score": "answer_mean", "tie": "wrong", "empty_union": "one"})
    records = [
        scorer.score(o.question, prediction_of(model, o), o.images.original_hw[o.image])
        for o in oracle(model, folder, source, keep=keep)
    ]
    sizes = [len(r["gt_parts"]) for r in records]
    m = partonomy.summary(records)
    assert sizes == [2, 3, 4]
    assert m["gmiou_macro_published"] == 1.0 and m["part_accuracy"] == 1.0 and m["false_mask_rate"] == 0.0
    assert m["gmiou_macro"] == pytest.approx(np.mean([keep / n for n in sizes]))
    assert m["gmiou_micro"] == pytest.approx(3 * keep / sum(sizes))
    assert m["span_f1"] == pytest.approx(2 * 3 * keep / (3 * keep + sum(sizes)))
    details = partonomy.protocols(records)["end_to_end"]["identification_with_label"]
    assert details["n_missing_masks"] == sum(sizes) - 3 * keep
    low, high = details["interval_95"]["gmiou_macro"]
    assert low <= m["gmiou_macro"] <= high


def test_false_masks_and_refused_masks(run):
    records = [json.loads(json.dumps(r)) for r in run[4]]
    spans = [s for r in records for s in r["end_to_end"]["spans"] if s["status"] == "ok"]
    wrong = sum(s["part"] is None for s in spans)
    m = partonomy.protocols(records)["end_to_end"]
    total = sum(r["end_to_end"]["masks"] for r in records)
    assert total == len(spans) > 0 and wrong > 0  # random tags name nonsense
    rates = {r["question_type"]: m[r["question_type"]]["false_mask_rate"] for r in records}
    counts = {kind: sum(r["end_to_end"]["masks"] for r in records if r["question_type"] == kind) for kind in rates}
    assert sum((rate or 0) * counts[kind] for kind, rate in rates.items()) == pytest.approx(wrong)


def test_ties_are_wrong_end_to_end_and_first_when_published():
    outcome = Outcome(0, None, {}, None, None, 0)
    rows = [type("Row", (), {"choice": type("C", (), {"correct": c})})() for c in (True, False, False)]
    group = Group(0, "part", rows, 3)
    tied = {name: np.array([1.0, 1.0, 2.0]) for name in runner.MEASURES}
    runner.choose_answer(outcome, group, tied, eval_fixtures.config().eval)
    assert outcome.predicted["part"] == 1
    question = SimpleNamespace(question_type="identification", correct=0, object_correct=None)
    prediction = Prediction(0, "", "identification", outcome.scores, {})
    assert choices_of(question, prediction, "answer_mean", "wrong")["part"] == 1
    assert choices_of(question, prediction, *PUBLISHED)["part"] == 0


def test_calibration_is_written_beside_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MIN_MASKS", 3)
    loaded = eval_fixtures.loaded()
    loaded = type(loaded)(**{**vars(loaded), "path": str(tmp_path / "run" / "checkpoints" / "7"), "sha256": "abc"})
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    results = evaluate.evaluate_folder(loaded, run[0], "test", tmp_path / "out", log=None, calibrate=True)
    assert results["calibration"]["error_after"] <= results["calibration"]["error"] + 1e-9
    fresh = Model(loaded)
    assert fresh.calibrated and calibration.load(tmp_path / "run", "abc") == fresh.calibration
    assert not Model(loaded, calibrate=False).calibrated


def test_select_types_and_images(run):
    from data_pipelines.partonomy.records import read_questions

    source = run[0] / "partonomy_qa_pairs_test.json"
    questions = dict(enumerate(read_questions(source)))
    chosen = select(questions, ["part_to_whole"], 2, source)
    assert [q.question_type for q in chosen.values()] == ["part_to_whole"] * 2 and list(chosen) == [1, 4]
    with pytest.raises(UserError, match="'difference'.*it has identification_with_label"):
        select(questions, ["difference"], None, source)


def test_bad_input_is_one_sentence_and_status_2(run, model, tmp_path, capsys):
    folder = run[0]
    with pytest.raises(UserError, match="no such question file; it has the splits"):
        evaluate.evaluate_folder(model, folder, "nosplit", tmp_path, log=None)
    entries = json.loads((folder / "partonomy_qa_pairs_test.json").read_text())
    for name, change in {
        "text": lambda e: e.update(answer_choices=["It has a lid.", *e["answer_choices"][1:]]),
        "image": lambda e: e.update(image_path="images/none.png"),
        "mask": lambda e: e["segmentations"].update(wheel=[coco.encode(np.ones((4, 5), bool))]),
        "types": lambda e: e.update(answer_types=["correct"] * 5),
    }.items():
        broken = json.loads(json.dumps(entries[:1]))
        change(broken[0])
        eval_fixtures.write_questions(folder, broken, split=name)
        with pytest.raises(UserError, match=r"none\.png" if name == "image" else f"pairs_{name}.json: entry 0"):
            evaluate.evaluate_folder(model, folder, name, tmp_path / name, log=None)
        assert not (tmp_path / name).exists()
    args = ["partonomy", "--checkpoint", str(tmp_path / "no"), "--data", str(folder), "--out", str(tmp_path / "o")]
    assert cli.run(evaluate.main, args) == 2
    error = capsys.readouterr().err
    assert error.startswith("plum evaluate: error: ") and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    "args, said",
    [
        (["--split", "tset"], "no such question file"),
        (["--question-types", "foo"], "no questions of type 'foo'"),
        (["--question-types", ""], "no questions of type ''"),
        (["--max-images", "0"], "--max-images 0"),
        (["--config.model.llama.depth=3"], "--config.model.llama.depth"),
        (["--calibrate"], "--calibrate"),
    ],
)
def test_bad_arguments_write_nothing(args, said, run, tmp_path, capsys, monkeypatch):
    loaded = LoadedModel(**vars(eval_fixtures.loaded()))
    monkeypatch.setattr("plum_jax.loading.load_model", lambda path, **_: loaded)
    common = ["partonomy", "--checkpoint", "x", "--data", str(run[0]), "--out", str(tmp_path / "o")]
    assert cli.run(evaluate.main, [*common, *args], name="evaluate") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_config_of_another_model_is_refused():
    saved = eval_fixtures.config()
    assert checkpoint_flags.eval_config(saved, None, ["eval.min_score=0.3"]).eval.min_score == 0.3
    assert saved.eval.min_score == 0.0
    with pytest.raises(UserError, match=r"another model.*model\."):
        checkpoint_flags.eval_config(saved, "configs/tiny.py", [])
    with pytest.raises(UserError, match="min_score"):
        checkpoint_flags.eval_config(saved, None, ["eval.minscore=0.3"])


@pytest.fixture(scope="module")
def faithful_run(run, tmp_path_factory):
    """The same evaluation with the reference's switches -> (results, records)."""
    loaded = eval_fixtures.loaded()
    config = loaded.config.copy_and_resolve_references()
    config.eval.update(mc_score="full_mean", mc_dtype="bfloat16", tie="first", span_scope="all", feedback=False)
    out = tmp_path_factory.mktemp("faithful")
    loaded = type(loaded)(**{**vars(loaded), "config": config})
    return evaluate.evaluate_folder(loaded, run[0], "test", out, log=None), read(out)


def test_faithful_scores_are_those_of_a_bf16_run(run, faithful_run):
    """On a grid of 8 binary digits, the lowest one wins, the first of equals (M D24)."""
    results, records = faithful_run
    chosen = {"mc_score": "full_mean", "mc_dtype": "bfloat16", "tie": "first", "span_scope": "all", "feedback": False}
    assert chosen.items() <= results["settings"].items() and run[3]["settings"]["mc_dtype"] == "float32"
    for record, before in zip(records, run[4], strict=True):
        scores = np.array(record["scores"]["full_mean"], np.float32)
        np.testing.assert_array_equal(scores, scores.astype(ml_dtypes.bfloat16).astype(np.float32))
        np.testing.assert_allclose(scores, before["scores"]["full_mean"], rtol=2**-7)
        own = np.array(end_to_end_scores(record)["full_mean"], np.float32)
        assert record["predicted_published"] == int(np.argmin(scores)) and record["predicted"] == int(np.argmin(own))


def test_faithful_spans_cover_the_whole_row(run, faithful_run):
    """Tags outside the answer give masks that name nothing (M D27); those inside are the same."""
    unnamed = 0
    for record, before in zip(faithful_run[1], run[4], strict=True):
        end = record["end_to_end"]
        unnamed += sum(span["phrase"] == "" for span in end["spans"])
        assert all(span["part"] is None for span in end["spans"] if span["phrase"] == "")
        if record["predicted"] == before["predicted"]:
            places = [tuple(span["char"]) for span in end["spans"]]
            assert {tuple(span["char"]) for span in before["end_to_end"]["spans"][1:]} <= set(places)
            assert end["span_counts"]["predicted"] >= before["end_to_end"]["span_counts"]["predicted"]
    assert unnamed and all(span["phrase"] for record in run[4] for span in record["end_to_end"]["spans"])


def test_faithful_masks_see_no_other_mask(run, faithful_run):
    """The published protocol of a merged checkpoint (M D20): the first mask of an answer is the same, later ones are not."""
    later = []
    for record, before in zip(faithful_run[1], run[4], strict=True):
        pairs = list(zip(record["published"]["spans"], before["published"]["spans"], strict=True))
        assert [a["phrase"] for a, _ in pairs] == [b["phrase"] for _, b in pairs]
        same = [(coco.decode(a["mask"]) != coco.decode(b["mask"])).mean() < 1e-3 for a, b in pairs]
        assert same[0]
        later += same[1:]
    assert not all(later)


def test_plum_score_gives_the_same_numbers_from_the_predictions_alone(run):
    """The file that `plum evaluate` wrote, read as that of any other model."""
    folder, out, _, results, records = run
    again, lines = score.score_files([out / "predictions.jsonl"], folder / "partonomy_qa_pairs_test.json")
    assert json.loads(json.dumps(lines)) == records
    assert json.loads(json.dumps(again["protocols"])) == json.loads(json.dumps(results["protocols"]))
    assert again["summary"] == results["summary"] and again["counts"]["scored"] == results["counts"]["scored"]
    assert {again["settings"][name] == results["settings"][name] for name in again["settings"]} == {True}
