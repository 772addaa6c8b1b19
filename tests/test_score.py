"""plum score partonomy: known predictions, missing ones, files of the published code and their claims, the command itself."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from plum_jax import cli, coco, score
from plum_jax.errors import UserError
from plum_jax.evaluation import partonomy_results
from tests import eval_fixtures, score_fixtures
from tests.reference import partonomy_scorer

WITH_LABEL = "identification_with_label"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """-> (folder, question file, its entries): nine questions about three images."""
    folder = tmp_path_factory.mktemp("data")
    return folder, folder / "partonomy_qa_pairs_test.json", eval_fixtures.write_folder(folder)


def run(tmp_path, data, made, name="p.json", **options):
    path = score_fixtures.write(tmp_path / name, made)
    return score.score_files([path], data[1], **options)


def perfect(data):
    return [score_fixtures.perfect(entry, i) for i, entry in enumerate(data[2])]


def test_perfect_predictions_score_one(data, tmp_path):
    results, records = run(tmp_path, data, perfect(data))
    assert results["counts"] == {
        "predicted": 9, "scored": 9, "missing": {}, "missing_counts_as": "wrong", "incomplete": {}, "skipped": {},
    }  # fmt: skip
    assert len(records) == results["data"]["n_instances"] == 9 and results["split"] == "test"
    for kind in (WITH_LABEL, "part_to_whole", "whole_to_part"):
        group = results["protocols"]["end_to_end"][kind]
        assert group["mask_macro"]["gmIoU-paired_strict"] == group["mask_micro"]["gmIoU-paired_strict"] == 1.0
        assert group["mc_part_text"]["accuracy"] == 1.0 and group["false_mask_rate"] == 0.0
        assert group["part_text"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
        assert results["protocols"]["published"][kind]["mc_part_text"]["accuracy"] == 1.0
        assert (group["mc_object_text"]["total"], group["span"]) == (0 if kind == WITH_LABEL else 3, None)
    assert results["summary"]["gmiou_macro"] == results["summary"]["part_accuracy"] == 1.0


def test_what_is_missing_counts_as_wrong_unless_it_is_left_out(data, tmp_path):
    made = perfect(data)
    del made[3]  # an identification question about the second image, with three parts
    results, records = run(tmp_path, data, made)
    group = results["protocols"]["end_to_end"][WITH_LABEL]
    sizes = [2, 3, 4]
    assert group["mask_macro"]["gmIoU-paired_strict"] == pytest.approx(2 / 3)
    assert group["mask_micro"]["gmIoU-paired_strict"] == pytest.approx((sum(sizes) - 3) / sum(sizes))
    assert group["mc_part_text"] == {"accuracy": 2 / 3, "correct": 2, "total": 3}
    assert group["part_text"]["precision"] == 1.0 and group["part_text"]["recall"] == pytest.approx(6 / 9)
    assert group["part_text_rules"]["recall"] == pytest.approx(6 / 9)
    assert results["summary"]["part_accuracy"] == pytest.approx(2 / 3)
    assert records[3]["unanswered"] == ["part"] and records[3]["predicted"] is None
    assert results["counts"]["missing"] == {"no_prediction": 1} and results["counts"]["scored"] == 9
    results, records = run(tmp_path, data, made, ignore_missing=True)
    group = results["protocols"]["end_to_end"][WITH_LABEL]
    assert group["mask_macro"]["gmIoU-paired_strict"] == group["mc_part_text"]["accuracy"] == 1.0 and group["n_instances"] == 2
    assert results["counts"]["missing_counts_as"] == "left_out" and len(records) == results["counts"]["scored"] == 8
    assert results["counts"]["missing"] == results["counts"]["skipped"] == {"no_prediction": 1}
    assert results["summary"]["n_skipped"] == 1


def test_a_reason_for_no_answer_is_no_excuse(data, tmp_path):
    made = perfect(data)
    made[0] = {"index": 0, "skipped": "refused"}
    results, _ = run(tmp_path, data, made)
    assert results["counts"]["missing"] == {"refused": 1} and results["counts"]["predicted"] == 8
    assert results["protocols"]["end_to_end"][WITH_LABEL]["mask_macro"]["gmIoU-paired_strict"] == pytest.approx(2 / 3)


def test_a_prediction_that_lacks_what_the_others_give_is_wrong_there(data, tmp_path):
    made = perfect(data)
    del made[1]["predicted"]  # the object of a question that asks for it
    made[4] = {"index": 4, "predicted": {"part": 0, "object": 0}}  # no masks
    results, records = run(tmp_path, data, made)
    assert results["counts"]["incomplete"] == {"choice_of_object": 1, "pred_answer_pred_spans": 1}
    assert records[1]["unanswered"] == ["object"] and records[1]["predicted"] is not None
    group = results["protocols"]["end_to_end"]["part_to_whole"]
    assert group["mc_object_text"]["total"] == 3 and group["mc_object_text"]["correct"] <= 2
    assert group["mask_macro"]["gmIoU-paired_strict"] == pytest.approx(2 / 3)


def test_types_that_no_prediction_answers_are_left_out_and_counted(data, tmp_path):
    results, _ = run(tmp_path, data, perfect(data)[::3])
    assert list(results["protocols"]["end_to_end"]) == [WITH_LABEL]
    assert results["counts"]["skipped"] == {"type_not_answered": 6} and results["counts"]["scored"] == 3
    results, _ = run(tmp_path, data, perfect(data), types=["whole_to_part"])
    assert list(results["protocols"]["end_to_end"]) == ["whole_to_part"] and results["counts"]["scored"] == 3
    with pytest.raises(UserError, match="--question-types difference: .* have identification_with_label"):
        run(tmp_path, data, perfect(data), types=["difference"])


def test_scores_of_one_measure_choose_and_ties_do_not_pay(data, tmp_path):
    made = [{"index": i, "better": "higher", "choice_scores": {"part": [0.5] * 5}} for i in (0, 3, 6)]
    results, records = run(tmp_path, data, made)
    assert results["settings"]["mc_score"] == "score"
    assert results["protocols"]["end_to_end"][WITH_LABEL]["mc_part_text"]["correct"] == 0
    assert [r["predicted_published"] for r in records] == [0, 0, 0]  # the first of equal ones, as published
    assert results["protocols"]["published"][WITH_LABEL]["mask_macro"]["gmIoU-paired"] is None  # no masks, no number
    for item in made:
        item["choice_scores"]["part"] = [float(kind == "correct") for kind in data[2][item["index"]]["answer_types"]]
    assert run(tmp_path, data, made)[0]["protocols"]["published"][WITH_LABEL]["mc_part_text"]["correct"] == 3
    with pytest.raises(UserError, match="--measure nll: no prediction has it; have score"):
        run(tmp_path, data, made, measure="nll")


def test_free_text_is_scored_by_what_its_phrases_name(data, tmp_path):
    made = []
    for i in (0, 3, 6):
        spans = score_fixtures.perfect(data[2][i], i)["answer"]["spans"]
        spans[0]["phrase"] = "The " + spans[0]["phrase"] + "s"
        made.append({"index": i, "answer": {"text": "Parts.", "spans": [*spans, {"phrase": "sky", "mask": spans[0]["mask"]}]}})
    results, _ = run(tmp_path, data, made)
    group = results["protocols"]["generation"][WITH_LABEL]
    assert group["mask_macro"]["gmIoU-paired_strict"] == 1.0 and group["false_mask_rate"] == pytest.approx(3 / 12)
    assert results["protocols"]["end_to_end"] == results["protocols"]["middle"] == {}


def reference_file(data, kind, *, keep=None):
    """A file of the published code about one type, with the metrics that the published evaluator has for it."""
    entries = [e for e in data[2] if e["question_type"] == kind]
    made = [score_fixtures.reference_entry(e, i % 5, rows=1 + i, keep=keep) for i, e in enumerate(entries)]
    instances = []
    for entry, item in zip(entries, made, strict=True):
        masks = {key: [coco.decode(rle).astype(int).tolist() for rle in item[key]] for key in ("predicted_masks", "gt_masks")}
        instances.append((entry, item, masks["predicted_masks"], masks["gt_masks"]))
    return {"metrics": published_metrics(instances), "predictions": made}


def published_metrics(instances):
    """Groups of D 5.9 by the plain loops of tests/reference."""
    predicted, target = [i[2] for i in instances], [i[3] for i in instances]
    macro, micro = {}, {}
    for name in ("paired", "greedy", "hungarian", "union"):
        pairs = [getattr(partonomy_scorer, name)(p, t, "one") for p, t in zip(predicted, target, strict=True)]
        macro[f"gmIoU-{name}"] = float(np.mean([np.mean(p) for p in pairs if p]))
        micro[f"gmIoU-{name}"] = float(np.mean(np.concatenate([p for p in pairs if p])))
    right = [i[1]["predicted_parts_answer"] == i[1]["gt_parts_answer"] for i in instances]
    return {
        "mask_macro": macro,
        "mask_micro": micro,
        "mc_part_text": {"accuracy": sum(right) / len(right), "correct": sum(right), "total": len(right)},
    }


@pytest.mark.parametrize("kind", [WITH_LABEL, "part_to_whole", "whole_to_part"])
@pytest.mark.parametrize("keep", [None, 1])
def test_files_of_the_published_code_score_what_they_say(kind, keep, data, tmp_path, capsys):
    results, _ = run(tmp_path, data, reference_file(data, kind, keep=keep))
    claim = results["claims"][0]
    assert claim["compared"] == 11 and claim["differences"] == [] and claim["other_targets"] == 0
    assert list(results["protocols"]["published"]) == [kind] and "warning" not in capsys.readouterr().err
    assert results["counts"]["missing"] == {} and results["counts"]["scored"] == 3


def test_a_claim_that_is_not_so_is_a_warning(data, tmp_path, capsys):
    file = reference_file(data, WITH_LABEL)
    file["metrics"]["mask_macro"]["gmIoU-paired"] += 2e-6
    file["metrics"]["mask_micro"]["gmIoU-paired"] += 5e-7  # below what counts
    file["metrics"]["mc_part_text"]["total"] += 2
    file["metrics"]["mask_micro"]["gmIoU-union"] = "0.5"
    file["predictions"][0]["gt_masks"][0]["counts"] = coco.encode(np.ones((20, 31), bool))["counts"]
    results, _ = run(tmp_path, data, file)
    found = {(d["group"], d["key"]) for d in results["claims"][0]["differences"]}
    assert found == {("mask_macro", "gmIoU-paired"), ("mc_part_text", "total"), ("mask_micro", "gmIoU-union")}
    said = capsys.readouterr().err
    assert said.count("warning: ") == 4 and "1 of 3 predictions carry other target masks" in said
    assert "counts questions whose predictions it does not hold" in said


def test_claims_of_several_types_are_not_compared(data, tmp_path, capsys):
    file = reference_file(data, WITH_LABEL)
    file["predictions"] += reference_file(data, "part_to_whole")["predictions"]
    results, _ = run(tmp_path, data, file)
    assert results["claims"][0]["compared"] == 0 and "several question types" in capsys.readouterr().err
    assert set(results["protocols"]["published"]) == {WITH_LABEL, "part_to_whole"}


def test_the_published_code_leaves_out_what_has_no_mask(data, tmp_path):
    """An empty list of masks is an answer of that protocol (D29); a missing prediction is not."""
    file = reference_file(data, WITH_LABEL)
    file["predictions"][0]["predicted_masks"] = []
    full, _ = run(tmp_path, data, file)
    assert full["protocols"]["published"][WITH_LABEL]["n_without_mask"] == 1
    kept = full["protocols"]["published"][WITH_LABEL]["mask_macro"]["gmIoU-paired"]
    del file["predictions"][0]
    short, _ = run(tmp_path, data, file)
    assert short["protocols"]["published"][WITH_LABEL]["mask_macro"]["gmIoU-paired"] == pytest.approx(kept * 2 / 3)


def test_a_file_of_the_published_code_about_other_questions(data, tmp_path):
    for change, said in (
        ({"gt_parts_answer": "It has a lid."}, r"\$\.gt_parts_answer is"),
        ({"predicted_parts_answer": "It has a lid."}, r"\$\.predicted_parts_answer is .* none of the choices"),
        ({"parts_answer_choices": ["a", "b"]}, r"\$\.parts_answer_choices are not the choices"),
        ({"questions": ["Why?"]}, r"\$\.questions is .* no identification_with_label question"),
        ({"image_path": "/x/9.png"}, r"\$\.image_path is"),
        ({"predicted_masks": [{"size": [2, 2], "counts": "04"}]}, r"\$\.predicted_masks\[0\]\.size is \[2, 2\]"),
        ({"predicted_masks": "none"}, r"\$\.predicted_masks is"),
    ):
        file = reference_file(data, WITH_LABEL)
        file["predictions"][1].update(change)
        with pytest.raises(UserError, match=rf"p\.json: entry 1: {said}"):
            run(tmp_path, data, file)


def test_equal_questions_take_predictions_in_turn(data, tmp_path):
    """The published code does not write the object of a question that does not ask for it."""
    entries = [json.loads(json.dumps(data[2][0])) for _ in range(2)]
    entries[1]["image_label"] = "lamp"
    source = tmp_path / "partonomy_qa_pairs_twice.json"
    source.write_text(json.dumps(entries))
    path = score_fixtures.write(tmp_path / "p.json", {"predictions": [score_fixtures.reference_entry(e, 0) for e in entries]})
    assert len(score.score_files([path], source)[1]) == 2
    three = {"predictions": [score_fixtures.reference_entry(entries[0], 0)] * 3}
    with pytest.raises(UserError, match="entry 2: is about question 0, as entry 0"):
        score.score_files([score_fixtures.write(path, three)], source)


def test_several_files_add_up(data, tmp_path):
    files = [
        score_fixtures.write(tmp_path / f"{kind}.json", reference_file(data, kind)) for kind in (WITH_LABEL, "whole_to_part")
    ]
    results, records = score.score_files(files, data[1])
    assert len(records) == 6 and len(results["claims"]) == 2 and [f["predictions"] for f in results["predictions"]] == [3, 3]
    assert all(len(file["sha256"]) == 64 and file["form"] == "published" for file in results["predictions"])


def test_the_records_give_the_results_again(data, tmp_path):
    results, records = run(tmp_path, data, reference_file(data, WITH_LABEL))
    again = [json.loads(json.dumps(record)) for record in records]
    assert partonomy_results.protocols(again) == results["protocols"]


def test_the_command_prints_one_object_and_imports_no_jax(data, tmp_path):
    path = score_fixtures.write(tmp_path / "p.jsonl", perfect(data))
    args = ["--predictions", str(path), "--reference", str(data[1]), "--images", str(data[0]), "--out", str(tmp_path / "o")]
    code = (
        "import sys; from plum_jax import cli; status = cli.main(sys.argv[1:]); "
        "sys.exit(status or 3 * any(name in sys.modules for name in ('jax', 'flax', 'torch', 'tensorflow')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "score", "partonomy", *args, "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results == json.loads((tmp_path / "o" / "results.json").read_text())
    assert len((tmp_path / "o" / "instances.jsonl").read_text().splitlines()) == 9
    facts = json.loads((tmp_path / "o" / "run.json").read_text())
    assert facts["status"] == "done" and set(facts["inputs"]) == {"questions", "predictions 0"}


def test_the_command_prints_a_table_and_what_is_next(data, tmp_path, capsys):
    path = score_fixtures.write(tmp_path / "p.json", perfect(data)[1:])
    args = ["--predictions", str(path), "--reference", str(data[1])]
    assert cli.main(["score", "partonomy", *args]) == 0
    said = capsys.readouterr().out
    assert "End to end" in said and "missing: 1 question, no prediction: counted as wrong" in said
    assert f"Next: plum score partonomy --predictions {path} --reference {data[1]} --out=scores" in said
    assert cli.main(["score", "partonomy", *args, "--out", str(tmp_path / "o")]) == 0
    assert f"Next: plum report {tmp_path / 'o'}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["score"], ["score", "--help"], ["score", "partonomy", "--help"]])
def test_help_is_there(command, capsys):
    try:
        assert cli.main(command) in (0, 2)
    except SystemExit as stop:
        assert stop.code == 0
    assert "partonomy" in capsys.readouterr().out


def test_bad_use_is_one_sentence_and_status_2(data, tmp_path, capsys):
    path = str(score_fixtures.write(tmp_path / "p.json", perfect(data)))
    good = ["--predictions", path, "--reference", str(data[1])]
    for args, said in (
        (good[:2], "--reference"),
        (["--predictions", path, "--reference", str(data[0])], "is a folder"),
        (["--predictions", path, "--reference", str(tmp_path / "none.json")], "no such question file"),
        ([*good, "--out", path], "is not a folder"),
        ([*good, "--images", str(tmp_path / "none")], "0.png"),
        ([*good, "--tie", "last"], "--tie"),
        ([*good, "--question-types", "nothing"], "--question-types nothing"),
    ):
        assert cli.main(["score", "partonomy", *args]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and error.splitlines()[-1].startswith("plum score partonomy: error: ")


def test_images_of_another_size_are_refused(data, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 9)).save(tmp_path / "images" / f"{i}.png")
    with pytest.raises(UserError, match=r"0\.png: is \[9, 8\] upright, its masks are \[20, 31\]"):
        run(tmp_path, data, perfect(data), images=tmp_path)


def test_masks_of_one_image_that_disagree_in_size(data, tmp_path):
    entries = json.loads(json.dumps(data[2][:1]))
    entries[0]["segmentations"]["door"] = [coco.encode(np.ones((3, 4), bool))]
    source = tmp_path / "questions.json"
    source.write_text(json.dumps(entries))
    path = score_fixtures.write(tmp_path / "p.json", [{"index": 0, "answer": {"text": ""}}])
    with pytest.raises(UserError, match=r"questions\.json: entry 0: masks of one image have the sizes"):
        score.score_files([path], source)


VALUES = (None, True, -1, 0, 10**30, 1.5, "", "x", "\ud800", [], {}, [[]], {"a": 1}, [None] * 3, "0" * 1000, -(10**400), [{}])


def places(value, at=()):
    """Paths of everything inside a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


def damaged(value, rng):
    """A copy of which one or two places are overwritten, taken out, or joined by something that does not belong there."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2))):
        *way, last = rng.choice(list(places(value)))
        inner = value
        for key in way:
            inner = inner[key]
        how = rng.random()
        if how < 0.6:
            inner[last] = rng.choice(VALUES)
        elif how < 0.8:
            del inner[last]
        elif isinstance(inner, dict):
            inner[rng.choice(("x_", "foo", "index", "mask", "size", "counts"))] = rng.choice(VALUES)
        else:
            inner.append(rng.choice(VALUES))
    return value


@pytest.mark.parametrize("form", ["any_model", "published"])
def test_damaged_files_are_scored_or_refused_in_one_sentence(form, data, tmp_path):
    """Whatever stands in a file, nothing else is raised, and what is written is JSON."""
    rng, outcomes = random.Random(0), {True: 0, False: 0}
    made = {"predictions": perfect(data)[:3], "better": "higher"}
    span = {
        **made["predictions"][0]["answer"]["spans"][0],
        "char": None,
        "score": 0.5,
        "raw": 3,
        "part": "wheel",
        "status": "ok",
    }
    counts = {"span_counts": {"matched": 1, "predicted": 1, "target": 1}, "bio_counts": [[1, 1], [1, 1], [0, 0]]}
    made["predictions"][1]["choice_scores"] = {"part": {"nll": [1, 2, 3, 4, 5]}, "object": [1, 2, None, 4, 5]}
    made["predictions"][1]["answer"].update(counts)
    made["predictions"][2]["answers"] = {"generated": {"text": "A wheel.", "spans": [span]}}
    del made["predictions"][2]["answer"]
    made = reference_file(data, "whole_to_part") if form == "published" else made
    for _ in range(200):
        try:
            results, records = run(tmp_path, data, damaged(made, rng))
            json.dumps([results, records], allow_nan=False)
            outcomes[True] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 900
            outcomes[False] += 1
    assert min(outcomes.values()) > 10


def test_synonyms_join_names_where_names_are_compared_by_rules(data, tmp_path, capsys):
    entry = data[2][0]
    parts = entry["answer_parts"][entry["answer_types"].index("correct")]
    spans = [{"phrase": "gadget" if part == parts[0] else part, "mask": None} for part in parts]
    said = [{"index": 0, "answer": {"mode": "generated", "text": "".join(span["phrase"] for span in spans), "spans": spans}}]
    path, names = tmp_path / "p.json", tmp_path / "synonyms.yaml"
    score_fixtures.write(path, said)
    names.write_text(f"- [{parts[0]}, gadget]\n", encoding="utf-8")
    argv = ["score", "partonomy", "--predictions", str(path), "--reference", str(data[1]), "--ignore-missing", "--json"]
    found = []
    for more in ([], ["--synonyms", str(names)]):
        assert cli.main([*argv, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    texts = [results["protocols"]["generation"][WITH_LABEL]["part_text_rules"]["recall"] for results in found]
    assert texts == [pytest.approx(1 - 1 / len(parts)), 1.0]
    assert found[0]["settings"]["synonyms"] is None and found[1]["settings"]["synonyms"]["path"] == str(names)
    names.write_text("tire", encoding="utf-8")
    assert cli.main([*argv, "--synonyms", str(names)]) == 2
    assert "synonyms.yaml: is not a list of groups" in capsys.readouterr().err


def test_a_question_file_without_questions(tmp_path):
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(UserError, match="q.json: holds no question; give the question file that"):
        score.score_files([score_fixtures.write(tmp_path / "p.json", [{"index": 0}])], tmp_path / "q.json")
