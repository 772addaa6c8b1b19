"""The published protocol gives the numbers of the published evaluator, written down in tests/reference, on any predictions."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plum_jax import coco
from plum_jax.evaluation import masks, partonomy
from plum_jax.evaluation.prediction import GT_SPANS, Answer, Prediction, Span
from tests import prediction_fixtures
from tests.reference import partonomy_scorer as reference

GROUPS = ("mask_macro", "mask_micro", "part_text", "random_part_text", "mc_part_text", "mc_object_text")


def ours(pairs, policy):
    """The published protocol on questions and predictions -> the groups of one question type."""
    scorer = partonomy.Scorer("test", "questions.json", {"empty_union": policy})
    records = [scorer.score(q, p, hw) for q, p, hw in pairs]
    records = json.loads(json.dumps(records, allow_nan=False))  # as they stand in instances.jsonl
    (groups,) = partonomy.protocols(records)["published"].values()
    return groups


def theirs(pairs, targets, policy):
    instances = []
    for (question, prediction, _), found in zip(pairs, targets, strict=True):
        answer = prediction.answers[GT_SPANS]
        instances.append(([coco.decode(s.mask) for s in answer.spans], [found[part] for part in question.correct_parts]))
    chosen = [reference.lowest(p.choice_scores["part"]["full_mean"]) for _, p, _ in pairs]
    objects = [
        (reference.lowest(p.choice_scores["object"]["full_mean"]), q) for q, p, _ in pairs if "object" in p.choice_scores
    ]
    named = [q.answer_parts[i] for i, (q, _, _) in zip(chosen, pairs, strict=True)]
    correct = [q.correct_parts for q, _, _ in pairs]
    return {
        **reference.masks(instances, policy),
        "part_text": reference.part_text(list(zip(named, correct, strict=True))),
        "random_part_text": reference.random_part_text([q.answer_parts for q, _, _ in pairs], correct),
        "mc_part_text": reference.multiple_choice(chosen, [q.correct for q, _, _ in pairs]),
        "mc_object_text": reference.multiple_choice([i for i, _ in objects], [q.object_correct for _, q in objects]),
    }


def assert_same(got, want):
    for group in GROUPS:
        assert set(got[group]) == set(want[group])
        for name, value in want[group].items():
            assert (got[group][name] is None) == (value is None), (group, name)
            if value is not None:
                assert got[group][name] == pytest.approx(value, rel=0, abs=1e-9), (group, name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 6),
    policy=st.sampled_from(sorted(masks.EMPTY_UNION)),
    kind=st.sampled_from(["identification", "positive_with_label", "part_to_whole", "whole_to_part"]),
    ties=st.booleans(),
)
def test_random_predictions(seed, count, policy, kind, ties):
    rng = np.random.default_rng(seed)
    pairs, targets = [], []
    for index in range(count):
        hw = tuple(int(side) for side in rng.integers(1, 10, 2))
        question, found = prediction_fixtures.question(rng, index, kind, hw)
        pairs.append((question, prediction_fixtures.prediction(rng, question, index, hw, (GT_SPANS,), ties), hw))
        targets.append(found)
    assert_same(ours(pairs, policy), theirs(pairs, targets, policy))


masks_of = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), max_size=4)


@settings(max_examples=150, deadline=None)
@given(predicted=masks_of, target=masks_of.filter(len), policy=st.sampled_from(sorted(masks.EMPTY_UNION)))
def test_any_masks(predicted, target, policy):
    """Shrinks to the smallest masks on which a strategy differs; ties of IoU are common at this size."""
    rng, hw = np.random.default_rng(0), (3, 4)
    found = {name: np.reshape(bits, hw) for name, bits in zip("abcd", target, strict=False)}
    question, _ = prediction_fixtures.question(rng, 0, masks=found)
    spans = tuple(Span(f"part {k}", coco.encode(np.reshape(bits, hw))) for k, bits in enumerate(predicted))
    prediction = Prediction(
        0,
        question.image_path,
        question.question_type,
        {"part": {"full_mean": [1.0] * 5}},
        {GT_SPANS: Answer("", spans, question.correct)},
    )
    pairs = [(question, prediction, hw)]
    assert_same(ours(pairs, policy), theirs(pairs, [found], policy))


def test_one_prediction_for_three_targets():
    """Acceptance test 8 of D 7.5: paired 1, strict 1/3."""
    found = {name: np.roll(np.eye(4, 6, dtype=bool), k, 1) for k, name in enumerate(("base", "lid", "wing"))}
    question, _ = prediction_fixtures.question(np.random.default_rng(0), 0, hw=(4, 6), masks=found)
    answer = Answer("x", (Span("base", coco.encode(found["base"]), part="base"),), question.correct)
    prediction = Prediction(0, question.image_path, question.question_type, {}, {GT_SPANS: answer}, {"part": question.correct})
    groups = ours([(question, prediction, (4, 6))], "one")
    assert groups["mask_macro"]["gmIoU-paired"] == groups["mask_micro"]["gmIoU-paired"] == 1.0
    assert groups["strict_macro"]["gmIoU-paired_strict"] == pytest.approx(1 / 3)
    assert groups["mc_part_text"] == {"accuracy": 1.0, "correct": 1, "total": 1}  # stated, without scores


def test_scoring_needs_no_jax():
    code = "import sys, plum_jax.evaluation.partonomy; print([m for m in ('jax', 'torch', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
