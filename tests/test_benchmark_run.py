"""Running the other benchmarks with a tiny random model: equal to one row at a time, resumable, a bad image is one count."""

import json
from pathlib import Path

import benchmark_fixtures as fixtures
import eval_fixtures
import jax
import numpy as np
import pytest

from data_pipelines.conversation import IMAGE, encode
from data_pipelines.images import load_image
from plum_jax import cli, coco, evaluate
from plum_jax.errors import UserError
from plum_jax.evaluation import asking, benchmark_command, benchmark_score, benchmarks, prediction_file
from plum_jax.evaluation.answered import Settings
from plum_jax.evaluation.asked import read_questions
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS
from plum_jax.inference import Model
from plum_jax.models.plum import bind


@pytest.fixture(scope="module")
def model():
    return Model(eval_fixtures.loaded())


def evaluated(model, name, out, *argv, settings=None, **options):
    """-> (results, scored records, predictions by index)."""
    bench, args = benchmarks.module(name), fixtures.arguments(name, *argv)
    run = benchmark_command.evaluate_data
    results = run(bench, name, model, bench.open_data(args), out, settings or Settings(), log=None, **options)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    records = [json.loads(line) for line in (out / "instances.jsonl").read_text().splitlines()]
    return results, records, {p.index: p for p in prediction_file.read(out / "predictions.jsonl")}


@pytest.fixture(scope="module")
def refer(model, tmp_path_factory):
    """-> (root, out, results, records, predictions) of gRefCOCO."""
    root = fixtures.refer(tmp_path_factory.mktemp("data"))
    out = root / "out"
    return root, out, *evaluated(model, "refer", out, "--data", root, "--dataset", "grefcoco")


def test_results_name_every_number_in_full(refer):
    root, out, results, records, predictions = refer
    assert (results["benchmark"], results["dataset"], results["split"]) == ("refer", "grefcoco", "val")
    assert set(results["protocols"]) == {"teacher_forced", "open"}
    for groups in results["protocols"].values():
        numbers = groups["all"]
        assert (numbers["n_samples"], numbers["n_no_target"], numbers["n_images"]) == (6, 1, 2)
        assert {"giou_mean_over_samples", "ciou_cumulative", "n_acc", "t_acc", "giou_mean_over_samples_with_target"} <= set(
            numbers
        )
        assert not {"giou", "gIoU", "ciou"} & set(numbers)
    assert results["counts"] == {"scored": 6, "skipped": {}, "left_out": {}}
    assert results["data"]["n_instances"] == len(records) == len(predictions) == 6
    assert [record["index"] for record in records] == list(range(6))
    assert set(results["data"]["files"]) == {
        str(root / "refer_seg/grefcoco" / name) for name in ("instances.json", "grefs(unc).json")
    }  # fmt: skip


def test_records_agree_with_predictions(refer):
    _, out, _, records, predictions = refer
    for question, record in zip(read_questions(out / "questions.jsonl"), records, strict=True):
        nothing = np.zeros((40, 60), bool)
        target = nothing if question.target is None else coco.decode(question.target)
        for mode, protocol in ((GT_SPANS, "teacher_forced"), (GENERATED, "open")):
            spans = predictions[record["index"]].answers[mode].spans
            united = np.any([nothing, *(coco.decode(s.mask) for s in spans if s.status == "ok")], axis=0)
            united = united & (united.sum() >= 50)
            assert record[protocol]["intersection"] == (united & target).sum()
            assert record[protocol]["union"] == (united | target).sum()
            assert record[protocol]["has_span"] == bool(spans)


def test_teacher_forced_masks_are_those_of_a_row_alone(refer, model):
    """One forward pass over the whole row, without a shared prefix or a batch."""
    root, out, _, _, predictions = refer
    plum = bind(model.graphdef, model.params)
    for index, question in enumerate(read_questions(out / "questions.jsonl")):
        images = model.encode_images([load_image(root / question.image_path)], 1)
        turns = [(f"{IMAGE}\n{question.prompt}", question.given)]
        row = encode(turns, model.tokenizer, model.config.data.template, [asking.TextSpan(0, *question.span)])
        embeds, place = plum.embed(row.tokens[None], np.array([row.image_position]), images.tokens)
        cache = plum.llama.empty_cache(1, embeds.shape[1])
        hidden, _ = plum.llama.extend(embeds, cache, np.array([embeds.shape[1]]))
        features = np.asarray(plum.project(hidden))[0]
        where = np.asarray(place)[0][row.span_of_token > 0]
        low = model.decode(images, [0], [features[where].mean(0)[None]], 1)[0][0]
        mask, _ = model.mask(low, 1.0, images, 0)
        (span,) = predictions[index].answers[GT_SPANS].spans
        assert (coco.decode(span.mask) != mask).mean() < 0.01
        assert span.phrase == question.name and predictions[index].answers[GT_SPANS].text == question.given


def test_open_answers_are_those_of_one_question_alone(refer, model):
    root, out, _, _, predictions = refer
    for index, question in enumerate(read_questions(out / "questions.jsonl")):
        alone = model(root / question.image_path, question.prompt)
        found = predictions[index].answers[GENERATED]
        assert found.text == alone.text
        assert [(s.phrase, s.char, s.status) for s in found.spans] == [(s.phrase, s.char_span, s.status) for s in alone.spans]
        for span, wanted in zip(found.spans, alone.spans, strict=True):
            assert (coco.decode(span.mask) != wanted.mask).mean() < 0.01
            assert span.score == pytest.approx(wanted.score, abs=1e-3)


@pytest.mark.parametrize("sizes, devices", [((1, 4), 1), ((8, 16), 8)])
def test_neither_batches_nor_devices_matter(refer, model, tmp_path, sizes, devices):
    root, _, results, _, predictions = refer
    options = dict(sizes=asking.Sizes(*sizes), devices=jax.devices()[:devices])
    again, _, found = evaluated(model, "refer", tmp_path, "--data", root, "--dataset", "grefcoco", **options)
    for index, prediction in predictions.items():
        one, other = prediction.answers[GENERATED], found[index].answers[GENERATED]
        assert (one.text, [s.phrase for s in one.spans]) == (other.text, [s.phrase for s in other.spans])
    for protocol in ("teacher_forced", "open"):
        for key, value in results["protocols"][protocol]["all"].items():
            assert again["protocols"][protocol]["all"][key] == pytest.approx(value, abs=0.02), key


def test_a_run_that_was_cut_off_ends_with_the_same_files(refer, model, tmp_path, monkeypatch):
    root, out, results, _, _ = refer
    argv = ("--data", root, "--dataset", "grefcoco")
    evaluated(model, "refer", tmp_path, *argv)
    whole = (tmp_path / "predictions.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])
    added, append = [], prediction_file.append
    monkeypatch.setattr(
        prediction_file, "append", lambda path, found: added.extend(p.index for p in found) or append(path, found)
    )
    again, _, _ = evaluated(model, "refer", tmp_path, *argv)
    assert added == [4, 5]
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole
    assert again["protocols"] == results["protocols"]
    questions = (tmp_path / "questions.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"predictions.jsonl: holds a run that differs in questions; give another --out"):
        evaluated(model, "refer", tmp_path, *argv, "--max-images", 1)
    assert (tmp_path / "questions.jsonl").read_bytes() == questions and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["refer", "pope", "hallucination"])
def test_scoring_the_files_of_a_run_gives_its_results(model, tmp_path, name):
    argv = ["--data", tmp_path, *(["--dataset", "grefcoco"] if name == "refer" else [])]
    {"refer": fixtures.refer, "pope": fixtures.pope, "hallucination": eval_fixtures.write_folder}[name](tmp_path)
    results, records, _ = evaluated(model, name, tmp_path / "out", *argv)
    files = tmp_path / "out/predictions.jsonl", tmp_path / "out/questions.jsonl"
    again, scored = benchmark_score.score_files(name, *files, Settings())
    assert json.loads(json.dumps(again["protocols"])) == json.loads(json.dumps(results["protocols"]))
    assert json.loads(json.dumps(scored)) == records
    assert again["counts"] == {"scored": len(records), "skipped": {}}


def test_a_bad_image_is_counted_and_not_an_end(model, tmp_path):
    fixtures.refer(tmp_path)
    bad = next((tmp_path / "refer_seg/images/mscoco/images/train2014").glob("*1.jpg"))
    bad.write_bytes(b"no image")
    results, records, _ = evaluated(model, "refer", tmp_path / "out", "--data", tmp_path, "--dataset", "grefcoco")
    assert results["counts"] == {"scored": 2, "skipped": {"image_unreadable": 4}, "left_out": {}}
    assert [r.get("skipped") for r in records] == ["image_unreadable"] * 4 + [None] * 2
    assert results["protocols"]["open"]["all"]["n_samples"] == 2
    next((tmp_path / "refer_seg/images/mscoco/images/train2014").glob("*2.jpg")).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"nothing could be scored \(6 x image_unreadable\); restore the images"):
        evaluated(model, "refer", tmp_path / "out2", "--data", tmp_path, "--dataset", "grefcoco")


def test_reason_and_semantic_have_their_tables(model, tmp_path):
    results, _, _ = evaluated(model, "reason", tmp_path / "r", "--data", fixtures.reason(tmp_path), "--split", "test")
    for groups in results["protocols"].values():
        assert {name: n["n_samples"] for name, n in groups.items()} == {"all": 3, "first_query": 2, "long": 1, "short": 2}
    argv = ("--data", fixtures.semantic(tmp_path), "--dataset", "ade20k")
    results, records, _ = evaluated(model, "semantic", tmp_path / "s", *argv)
    numbers = results["protocols"]["teacher_forced"]["all"]
    walls = [r["teacher_forced"] for r in records if r["name"] == "wall"]
    wanted = sum(w["intersection"] for w in walls) / sum(w["union"] for w in walls)
    assert numbers["classes"]["wall"] == {"iou_cumulative": wanted, "n_samples": 2}
    assert numbers["n_classes"] == 3 and numbers["gmiou_micro"] == numbers["giou_mean_over_samples"]
    settings = Settings(ignore255_as_fg=True)
    other, _, _ = evaluated(model, "semantic", tmp_path / "s2", *argv, settings=settings)
    assert other["settings"]["ignore255_as_fg"] and not results["settings"]["ignore255_as_fg"]
    assert other["protocols"]["open"]["all"]["ciou_cumulative"] == results["protocols"]["open"]["all"]["ciou_cumulative"]


def test_words_need_no_sam(model, tmp_path, monkeypatch):
    fixtures.textvqa(tmp_path)
    fixtures.pope(tmp_path)
    argv = ("--data", tmp_path, "--dataset", "textvqa")
    results, records, _ = evaluated(model, "vqa", tmp_path / "with", *argv, settings=Settings(metric="contains"))
    assert results["counts"] == {"scored": 2, "skipped": {}, "left_out": {"image file missing": 1}}
    assert set(results["protocols"]) == {"official", "contains"} and "masks" not in records[0]
    for record in records:
        question = next(q for q in read_questions(tmp_path / "with/questions.jsonl") if q.id == record["id"])
        assert record["answer"] == model(tmp_path / question.image_path, question.prompt).text
    monkeypatch.setattr("plum_jax.generate.encode_images", None)
    results, records, predictions = evaluated(model, "pope", tmp_path / "pope", "--data", tmp_path)
    assert set(results["protocols"]["official"]) == {"all", "random", "popular", "adversarial"}
    assert results["protocols"]["official"]["all"]["n_questions"] == 6 and "contains" not in results["protocols"]
    assert all(p.answers[GENERATED].spans == () for p in predictions.values())


def test_parts_have_yes_rates_and_false_masks(model, tmp_path):
    eval_fixtures.write_folder(tmp_path, types=("identification_with_label",))
    results, records, _ = evaluated(model, "hallucination", tmp_path / "out", "--data", tmp_path)
    assert set(results["protocols"]) == {"yes_no", "teacher_forced", "open"}
    for groups in results["protocols"].values():
        assert list(groups) == ["all", "adversarial", "popular", "random"]
    absent = [r["teacher_forced"] for r in records if r["kind"] == "mask" and not r["has_target"]]
    wanted = np.mean([a["pixels"] > 0 for a in absent])
    assert results["protocols"]["teacher_forced"]["all"]["false_mask_rate"] == pytest.approx(wanted)
    yes = results["protocols"]["yes_no"]["random"]
    assert yes["n_questions"] == sum("random" in r["groups"] and r["kind"] == "words" for r in records)


def test_the_command(model, tmp_path, capsys, monkeypatch):
    fixtures.refer(tmp_path)
    common = ["refer", f"--data={tmp_path}", "--dataset=grefcoco"]
    assert cli.run(evaluate.main, [*common, f"--out={tmp_path / 'q'}", "--questions-only"]) == 0
    assert "6 questions" in capsys.readouterr().out and len(list(read_questions(tmp_path / "q/questions.jsonl"))) == 6
    for argv, said in (
        ([*common, f"--out={tmp_path / 'x'}"], "--checkpoint: is missing"),
        ([*common, f"--out={tmp_path / 'x'}", "--checkpoint=y", "--max-images=0"], "--max-images 0: is too small"),
        ([*common, f"--out={tmp_path / 'x'}", "--checkpoint=y", "--split=none"], "grefcoco has no split 'none'"),
        (["refer", f"--data={tmp_path}", f"--out={tmp_path / 'x'}"], "required: --dataset; see plum evaluate refer --help"),
    ):
        assert cli.run(evaluate.main, argv) == 2
        assert said in capsys.readouterr().err
    assert not Path(tmp_path / "x").exists()
    monkeypatch.setattr("plum_jax.loading.load_model", lambda path, **options: _loaded())
    assert cli.run(evaluate.main, [*common, f"--out={tmp_path / 'o'}", "--checkpoint=y", "--allow-random"]) == 0
    out = capsys.readouterr().out
    assert "giou_mean_over_samples" in out and "teacher_forced" in out and "Next: plum score refer" in out
    run = json.loads((tmp_path / "o/run.json").read_text())
    assert run["status"] == "done" and set(run["inputs"]) == {"instances.json", "grefs(unc).json"}
    assert jax.default_backend() == "cpu"


def _loaded():
    from plum_jax.loading import LoadedModel

    random = eval_fixtures.loaded()
    fields = {name: getattr(random, name, None) for name in LoadedModel._fields}
    return LoadedModel(**{**fields, "missing": ()})
