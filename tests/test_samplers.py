"""Where wrong answers come from: co-occurring parts and similar objects."""

import collections

import numpy as np
import pytest

from data_pipelines.partonomy.samplers import ObjectSampler, PartSampler, name_similarity

INSTANCES = [["wheel", "body"], ["wheel", "body", "door"], ["leg", "seat"], ["leg", "seat", "back"], ["wheel", "door"]]
GRAPH = {"lamps": ["desk lamp", "floor lamp", "lantern"], "tools": ["axe", "hammer", "saw", "spade", "drill", "chisel"]}
LABELS = [label for children in GRAPH.values() for label in children]


def test_log_odds_are_the_smoothed_counts():
    sampler = PartSampler(INSTANCES, temperature=1.0, smoothing=1.0)
    assert sampler.vocabulary == ["back", "body", "door", "leg", "seat", "wheel"]
    logits = [np.log((c + 1) / (3 - c + 1)) for c in (0, 2, 2, 0, 0)] + [-np.inf]  # of 3 instances with a wheel
    want = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(sampler.predict(["wheel"], {"wheel"}), want, atol=1e-12)


def test_without_existing_parts_the_prior_decides():
    sampler = PartSampler(INSTANCES)
    probabilities = dict(zip(sampler.vocabulary, sampler.predict([], set()), strict=True))
    assert max(probabilities, key=probabilities.get) == "wheel"


def test_mixture_of_related_and_predicted_parts():
    sampler = PartSampler(INSTANCES, predictor_weight=0.1)
    rng = np.random.default_rng(0)
    drawn = collections.Counter(sampler.sample(["wheel"], ["back", "seat"], {"wheel"}, rng) for _ in range(8000))
    predicted = dict(zip(sampler.vocabulary, sampler.predict(["wheel"], {"wheel"}), strict=True))
    for part in ("back", "seat"):
        assert drawn[part] / 8000 == pytest.approx(0.45 + 0.1 * predicted[part], abs=0.03)
    assert drawn["body"] / 8000 == pytest.approx(0.1 * predicted["body"], abs=0.03)


def test_excluded_parts_are_never_drawn_and_nothing_left_is_none():
    sampler = PartSampler(INSTANCES)
    rng = np.random.default_rng(0)
    assert {sampler.sample([], ["leg"], {"leg", "wheel"}, rng) for _ in range(300)} <= {"back", "body", "door", "seat"}
    assert sampler.sample([], ["leg"], set(sampler.vocabulary), rng) is None


def test_parts_outside_the_data_are_ignored():
    sampler = PartSampler(INSTANCES)
    rng = np.random.default_rng(0)
    assert {sampler.sample(["sail"], ["mast"], {"keel"}, rng) for _ in range(300)} <= set(sampler.vocabulary)


def test_part_that_every_instance_has_predicts_nothing():
    sampler = PartSampler([["a", "b"], ["a", "c"]], temperature=1.0)
    assert sampler.log_odds[:, 0].tolist() == [0.0, 0.0, 0.0]


def test_object_sampler_prefers_siblings_and_falls_back():
    sampler = ObjectSampler(GRAPH, LABELS)
    rng = np.random.default_rng(0)
    for _ in range(50):
        tools = sampler.sample("saw", 4, rng)
        assert len(set(tools)) == 4
        assert set(tools) <= set(GRAPH["tools"]) - {"saw"}
        others = sampler.sample("lantern", 4, rng)  # two siblings are too few
        assert len(set(others)) == 4
        assert "lantern" not in others
    assert len(sampler.sample("lantern", 20, rng)) == len(LABELS) - 1


def test_similar_names_come_more_often_unless_the_temperature_is_infinite():
    def share(temperature):
        sampler, rng = ObjectSampler(GRAPH, LABELS, temperature=temperature), np.random.default_rng(0)
        return np.mean(["floor lamp" in sampler.sample("desk lamp", 1, rng) for _ in range(2000)])

    assert share(0.1) > 0.7
    assert share(np.inf) == pytest.approx(1 / 2, abs=0.04)  # it has two siblings


def test_label_outside_the_graph_gets_others():
    assert len(ObjectSampler(GRAPH, LABELS).sample("sofa", 4, np.random.default_rng(0))) == 4


def test_name_similarity_is_a_cosine():
    similarity = name_similarity(["desk lamp", "floor lamp", "saw"])
    np.testing.assert_allclose(np.diag(similarity), 1.0)
    np.testing.assert_allclose(similarity, similarity.T)
    assert similarity[0, 1] > similarity[0, 2]
