"""Scoring of predictions made by hand: protocols, names, missing and false masks, two questions, policies, what is skipped."""

import json

import numpy as np
import pytest

from data_pipelines.conversation import join_parts
from data_pipelines.partonomy.records import parse_question
from data_pipelines.partonomy.synonyms import SynonymKey
from plum_jax import coco
from plum_jax.errors import UserError
from plum_jax.evaluation import headline, masks, partonomy, result_groups, run_lengths
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, MODES, OWN, Answer, Prediction, Span
from tests import prediction_fixtures

HW = (20, 30)
KIND = "identification_with_label"


def square(top, left, size=4):
    found = np.zeros(HW, bool)
    found[top : top + size, left : left + size] = True
    return found


MASKS = {"base": square(0, 0), "lid": square(0, 10), "spout": square(10, 10)}


def ask(kind=KIND, parts=("base", "lid"), correct=1):
    """Five choices, of which `correct` is right; the last one names parts that are not there."""
    lists = [["base"], ["base", "lid", "spout"], ["lid", "tail"], ["spout", "lid"], ["tail", "wing"]]
    lists[correct] = list(parts)
    entry = {
        "image_path": "images/0.png", "image_label": "pot", "question": "Which parts?", "question_type": kind,
        "answer_choices": [f"The pot has: {join_parts(some)}." for some in lists],
        "answer_types": ["correct" if i == correct else "incorrect" for i in range(5)], "answer_parts": lists,
        "segmentations": {part: [coco.encode(mask)] for part, mask in MASKS.items()},
    }  # fmt: skip
    if kind in ("part_to_whole", "whole_to_part"):
        entry.update(
            object_question="What is it?", object_answer_choices=["A cup.", "A pot."],
            object_answer_types=["incorrect", "correct"], object_answer_classes=["cup", "pot"],
        )  # fmt: skip
    return parse_question(entry, "q.json", 0)


def give(phrase, mask, **fields):
    return Span(phrase, coco.encode(mask), **fields)


def predict(question, answers=None, scores=None, index=0, **fields):
    return Prediction(index, question.image_path, question.question_type, scores or {}, answers or {}, **fields)


def score(question, prediction, **settings):
    record = partonomy.Scorer("test", "q.json", settings).score(question, prediction, HW)
    return json.loads(json.dumps(record, allow_nan=False))


def results(*records):
    found = partonomy.protocols(list(records))
    return {protocol: next(iter(types.values()), None) for protocol, types in found.items()}


def test_missing_extra_and_false_masks():
    """Of two parts one is found; a second mask of it, one of a part not asked for and one of a part not there are counted."""
    question = ask()
    spans = (
        give("base", MASKS["base"], score=0.9, raw=0.8),
        give("base", square(10, 20), score=0.4, raw=0.4),
        give("spout", MASKS["spout"], score=0.9, raw=0.9),
        give("tail", square(3, 3), score=0.2, raw=0.2),
        give("lid", np.zeros(HW, bool), status="empty_mask"),
    )
    record = score(question, predict(question, {OWN: Answer(question.answer_choices[1], spans, 1)}))
    block = record["end_to_end"]
    assert block["pair_ious"] == {"base": 1.0, "lid": 0.0} and block["gmiou_strict"] == 0.5
    assert [s["part"] for s in block["spans"]] == ["base", "base", "spout", None, "lid"]
    assert [s["iou"] for s in block["spans"]] == [1.0, 0.0, 1.0, None, 0.0]
    assert block["masks"] == 4 and block["false_masks"] == 1 and block["extra_masks"] == 2
    assert record["published"] is record["middle"] is record["generation"] is None
    group = results(record)["end_to_end"]
    assert group["mask_macro"]["gmIoU-paired_strict"] == 0.5 and group["false_mask_rate"] == 0.25
    assert group["boundary_macro"] == {"boundary_gmIoU-paired_strict": 0.5}
    assert (group["n_pairs"], group["n_missing_masks"], group["n_extra_masks"]) == (2, 1, 2)
    assert group["by_area"]["1%_to_3%"] == {"gmIoU-paired_strict": 0.5, "n_pairs": 2}
    assert group["mask_macro"]["gmIoU-paired"] == 0.5  # base with base, lid with the square that is nowhere near
    assert group["mask_macro"]["gmIoU-union"] == pytest.approx(16 / (32 + 32 + 15), abs=1e-9)
    assert group["mask_scores"]["n_masks"] == 4
    assert group["span"] is None and group["bio_accuracy"] is None  # such a model tags nothing
    assert partonomy.calibration_pairs([record])[0].tolist() == [0.8, 0.4, 0.9, 0.2]


def test_part_inside_object_and_overlap():
    question = ask()
    half = square(0, 2)  # its left half lies on the base, the rest on nothing
    answer = Answer(question.answer_choices[1], (give("base", MASKS["base"]), give("lid", half)), 1)
    relations = results(score(question, predict(question, {OWN: answer})))["end_to_end"]["mask_relations"]
    assert relations["part_inside_object"] == {"mean": 0.75, "n": 2, "object": "union of its annotated parts"}
    assert relations["sibling_overlap"] == {"mean": 0.5, "n": 1}
    assert relations["sibling_overlap_of_targets"] == {"mean": 0.0, "n": 1}


def test_absent_parts_of_the_chosen_answer():
    question = ask()
    answer = Answer(question.answer_choices[4], (give("tail", square(1, 1)),), 4)  # names tail and wing
    record = score(question, predict(question, {OWN: answer}))
    assert results(record)["end_to_end"]["absent_parts"] == {"false_mask_rate": 0.5, "named": 2, "with_mask": 1}
    assert record["predicted"] == 4 and record["end_to_end"]["gmiou_strict"] == 0.0


def test_words_of_the_answer_stand_for_parts():
    """An answer that lists head words (D28): its own list says which part each of them is, also without the model's help."""
    question = ask()
    text = question.answer_choices[1].replace("base", "foot")
    answer = Answer(text, (give("foot", MASKS["base"]), give("Lid", MASKS["lid"])), 1)
    assert score(question, predict(question, {OWN: answer}))["end_to_end"]["gmiou_strict"] == 1.0
    other = Answer("My own words.", (give("foot", MASKS["base"], part="base"), give("lids", MASKS["lid"])), 1)
    assert score(question, predict(question, {OWN: other}))["end_to_end"]["pair_ious"] == {"base": 1.0, "lid": 0.0}


def test_free_text_is_matched_by_rules():
    question = ask()
    spans = (
        give("The Bases", MASKS["base"]),
        give("cover", MASKS["lid"]),
        give("bases", MASKS["lid"]),
        give("wing", square(1, 1)),
    )
    prediction = predict(question, {GENERATED: Answer("...", spans)})
    record = score(question, prediction)
    block = record["generation"]
    assert block["pair_ious"] == {"base": 1.0, "lid": 0.0} and block["false_masks"] == 2
    assert block["named_parts"] == {"exact": [0, 4, 2], "rules": [1, 3, 2]}  # the same part named twice counts once
    group = results(record)["generation"]
    assert group["part_text_rules"] == {"precision": 1 / 3, "recall": 0.5, "f1": pytest.approx(0.4)}
    assert group["part_text"]["f1"] == 0.0 and group["absent_parts"] == {"false_mask_rate": 1.0, "named": 2, "with_mask": 2}
    key = SynonymKey([["lid", "cover"]])
    again = partonomy.Scorer("test", "q.json", synonyms=key).score(question, prediction, HW)
    assert again["generation"]["pair_ious"] == {"base": 1.0, "lid": 1.0}
    assert again["generation"]["named_parts"]["rules"] == [2, 3, 2]


def test_choices_by_every_measure_and_rule():
    question = ask()
    scores = {"answer_mean": [2, 1, 1, 3, 3], "answer_sum": [1, 2, 3, 4, 5], "full_mean": [1, 1, 2, 2, None]}
    record = score(question, predict(question, scores={"part": scores}))
    assert record["predicted"] == 2 and record["predicted_published"] == 0  # the tie is wrong here, the first there
    groups = results(record)
    assert groups["middle"] is groups["generation"] is None
    for protocol, right in (("published", [1, 0, 0]), ("end_to_end", [0, 0, 0])):
        found = groups[protocol]["accuracy_by_score"]["part"]
        assert [found[name]["correct"] for name in ("answer_mean", "answer_sum", "full_mean")] == right
        assert groups[protocol]["random_accuracy"] == {"part": 0.2, "object": None}
        assert groups[protocol]["n_without_answer"] == 1 and groups[protocol]["mask_macro"]["gmIoU-paired"] is None
    assert groups["published"]["part_text"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert score(question, predict(question, scores={"part": scores}), mc_score="answer_sum")["predicted"] == 0
    assert score(question, predict(question, scores={"part": scores}), tie="first")["predicted"] == 1
    stated = score(question, predict(question, predicted={"part": 3}))
    assert stated["predicted"] == stated["predicted_published"] == 3


@pytest.mark.parametrize("kind", ["part_to_whole", "whole_to_part"])
def test_two_questions_after_either_first_answer(kind):
    """The model errs on the second question only after its own first answer."""
    question = ask(kind)
    best = lambda i, n: {name: [float(k != i) for k in range(n)] for name in ("answer_mean", "full_mean")}  # noqa: E731
    second, wrong = ("object", best(0, 2)) if kind == "part_to_whole" else ("part", best(4, 5))
    scores = {"part": best(1, 5), "object": best(1, 2), "second_after_predicted": wrong}
    record = score(question, predict(question, scores=scores))
    key = "predicted" if second == "part" else "object_predicted"
    assert record[key] == (4 if second == "part" else 0) and record[f"{key}_published"] == 1
    for protocol in ("published", "end_to_end"):
        found = results(record)[protocol]["two_questions"]
        assert found["second"] == second and found["after_correct_first"]["accuracy"] == 1.0
        assert found["after_predicted_first"]["accuracy"] == found["both_correct"]["accuracy"] == 0.0
    group = "mc_part_text" if second == "part" else "mc_object_text"
    assert results(record)["published"][group]["accuracy"] == 1.0 and results(record)["end_to_end"][group]["accuracy"] == 0.0
    del scores["second_after_predicted"]
    found = results(score(question, predict(question, scores=scores)))["end_to_end"]["two_questions"]
    assert found["after_predicted_first"] is found["both_correct"] is None


def test_masks_of_whole_to_part_are_scored():
    question = ask("whole_to_part")
    spans = (give("base", MASKS["base"]), give("lid", MASKS["lid"]))
    answers = {mode: Answer(question.answer_choices[1], spans, 1) for mode in MODES[:3]}
    for protocol in ("published", "middle", "end_to_end"):
        macro = results(score(question, predict(question, answers)))[protocol]["mask_macro"]
        assert set(macro.values()) == {1.0} and {f"gmIoU-{name}" for name in masks.STRATEGIES} <= set(macro)


@pytest.mark.parametrize(("policy", "want"), [("one", 1.0), ("zero", 0.5), ("skip", 1.0)])
def test_empty_masks_follow_the_policy_and_are_counted(policy, want):
    found = {"base": MASKS["base"], "lid": np.zeros(HW, bool)}
    question, _ = prediction_fixtures.question(np.random.default_rng(0), 0, hw=HW, masks=found)
    spans = tuple(give(part, mask, part=part) for part, mask in found.items())
    answers = {mode: Answer("", spans, question.correct) for mode in (GT_SPANS, GT_ANSWER)}
    groups = results(score(question, predict(question, answers), empty_union=policy))
    for protocol, names in (("published", ["paired"]), ("middle", ["paired", "paired_strict"])):
        for name in names:
            assert groups[protocol]["mask_macro"][f"gmIoU-{name}"] == want
            assert groups[protocol]["empty_union_pairs"][name] == 1
    assert groups["published"]["strict_macro"] == {"gmIoU-paired_strict": want}
    assert groups["published"]["empty_union_pairs"]["union"] == 0


def test_skipped_questions_are_counted_and_never_averaged():
    question = ask()
    good = score(question, predict(question, {OWN: Answer("", (give("base", MASKS["base"]),), 1)}))
    bad = score(question, predict(question, index=1, skipped="unreadable_image"))
    assert bad["skipped"] == "unreadable_image" and "gt_parts" not in bad
    assert partonomy.counts([good, bad]) == {"scored": 1, "skipped": {"unreadable_image": 1}}
    assert results(good) == results(good, bad)
    found = partonomy.summary([good, bad])
    assert found["n_skipped"] == 1 and found["n_instances"] == 1
    assert partonomy.summary([bad])["n_instances"] == 0 and partonomy.protocols([bad])["end_to_end"] == {}


def test_headline_follows_grounding_and_match():
    question = ask()
    both, one = (give("base", MASKS["base"]), give("lid", MASKS["lid"])), (give("lid", MASKS["lid"]),)
    answers = {GT_SPANS: Answer("", both, 1), GT_ANSWER: Answer("", one, 1), OWN: Answer("", (), 1)}
    record = score(question, predict(question, answers))
    pick = lambda grounding, match: partonomy.summary([record], grounding=grounding, match=match)["gmiou_macro"]  # noqa: E731
    assert partonomy.summary([record])["gmiou_macro"] == 0.0 == pick(OWN, "paired_strict")
    assert pick(GT_SPANS, "paired_strict") == pick(GT_SPANS, "paired") == 1.0
    assert pick(GT_ANSWER, "paired_strict") == 0.5 and pick(GT_ANSWER, "paired") == 0.0 and pick(GT_ANSWER, "greedy") == 1.0
    assert pick(GT_ANSWER, "union") == 0.5 and pick(OWN, "hungarian") is None


@pytest.mark.parametrize("kind", [KIND, "part_to_whole"])
def test_intervals_enclose_their_numbers(kind):
    """Each metric with an interval: its point value is the ratio of sums that the interval is of."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(40):
        question, _ = prediction_fixtures.question(rng, index, kind)
        prediction = prediction_fixtures.prediction(rng, question, index, ties=True)
        records.append(partonomy.Scorer("test", "q.json", {"empty_union": "skip"}).score(question, prediction, (7, 9)))
    for group in results(*records).values():
        seen = 0
        for name, found in group["interval_95"].items():
            if name in ("gmiou_macro", "part_accuracy"):
                continue
            metrics = {"": found} if isinstance(found, list) else found
            for metric, interval in metrics.items():
                value = group[name] if metric == "" else group[name][metric]
                if interval is not None:
                    assert interval[0] - 1e-12 <= value <= interval[1] + 1e-12, (name, metric)
                    seen += 1
        assert seen > 10
        assert set(group["interval_95"]["mask_macro"]) == set(group["mask_macro"])
        assert group["n_images"] == 7 and group["n_instances"] == 40


def test_ratios_are_the_means():
    pairs = [np.array([1.0, 0.5, np.nan]), np.array([]), np.array([np.nan]), np.array([0.25])]
    ratios = headline.mask_ratios({"x": pairs})
    value = lambda path: ratios[path][0].sum() / ratios[path][1].sum()  # noqa: E731
    assert value(("mask_macro", "x")) == masks.macro(pairs) and value(("mask_micro", "x")) == masks.micro(pairs)


def test_baselines_stand_beside_the_numbers():
    question = ask()
    group = results(score(question, predict(question, {OWN: Answer("", (), 1)})))["end_to_end"]["mask_baselines"]
    assert group["object_region"]["mask_macro"] == {"gmIoU-paired_strict": pytest.approx(1 / 3)}
    assert group["empty"]["mask_micro"] == {"gmIoU-paired_strict": 0.0}
    assert group["whole_image"]["mask_macro"]["gmIoU-paired_strict"] == pytest.approx(16 / 600)
    assert set(group) == {"empty", "whole_image", "random_box", "object_box", "object_region", "another_part"}


def test_the_order_of_questions_does_not_matter():
    rng = np.random.default_rng(3)
    records = []
    for index in range(12):
        question, _ = prediction_fixtures.question(rng, index, KIND)
        records.append(partonomy.score_instance(question, prediction_fixtures.prediction(rng, question, index), (7, 9)))
    forward, backward = results(*records), results(*records[::-1])
    for protocol in forward:
        for name in ("mask_macro", "mask_micro", "boundary_macro"):
            for metric, value in forward[protocol][name].items():
                assert backward[protocol][name][metric] == pytest.approx(value)
        assert forward[protocol]["n_pairs"] == backward[protocol]["n_pairs"]


def test_masks_of_another_size_and_bad_targets_are_named():
    question = ask()
    wrong = Answer("", (Span("base", coco.encode(np.ones((4, 5), bool))),), 1)
    with pytest.raises(UserError, match=r"question 0.*'base'.*4 x 5.*20 x 30"):
        score(question, predict(question, {OWN: wrong}))
    question.segmentations["lid"] = [{"size": [20, 30], "counts": "zz"}]
    with pytest.raises(UserError, match="q.json: entry 0: mask of 'lid': "):
        score(question, predict(question))


def test_targets_of_several_entries_are_united():
    question = ask()
    polygon = {"size": list(HW), "polygon": [20, 10, 24, 10, 24, 14, 20, 14]}
    question.segmentations["base"] = [coco.encode(MASKS["base"]), {"segmentation": polygon}]
    record = score(question, predict(question))
    united = coco.decode(record["gt_masks"][0])
    assert (united & MASKS["base"]).sum() == 16 and united.sum() == 16 + 25
    assert record["gt_areas"][0] == 41 / 600 and run_lengths.areas(record["gt_masks"]).tolist() == [41, 16]


def test_records_of_earlier_versions_are_still_summed_up():
    """Without the keys that came later, the numbers that their keys give are there."""
    question = ask()
    record = score(question, predict(question, {OWN: Answer("", (give("base", MASKS["base"]),), 1)}))
    new = results(record)["end_to_end"]
    for key in ("middle", "generation", "second_scores", "baselines", "gt_areas", "gt_overlap", "part_matches_rules"):
        del record[key]
    for key in ("ious", "boundary_pair_ious", "empty_pairs", "inside_object", "overlap", "absent_parts", "extra_masks"):
        del record["end_to_end"][key]
    old = results(record)["end_to_end"]
    assert old["mask_macro"]["gmIoU-paired_strict"] == new["mask_macro"]["gmIoU-paired_strict"] == 0.5
    assert old["false_mask_rate"] == 0.0 and old["boundary_macro"] == {} and old["mask_baselines"] is None
    assert result_groups.areas([record], [record["end_to_end"]])["1%_to_3%"]["n_pairs"] == 0
