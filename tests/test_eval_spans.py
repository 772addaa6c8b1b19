"""Tags to spans, span F1 and tag accuracy (M 3.3, D 5.5)."""

import jax
import numpy as np
import pytest

from plum_jax import spans as device_spans
from plum_jax.evaluation import spans


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ("OBIIO", [(1, 4)]),
        ("BB", [(0, 1), (1, 2)]),
        ("OIIB", [(3, 4)]),  # I without B is outside
        ("BOI", [(0, 1)]),  # an I after an O does not resume
        ("OBI", [(1, 3)]),  # open at the end
        ("OOO", []),
        ("", []),
    ],
)
def test_rules(labels, want):
    assert spans.decode_spans(["OBI".index(c) for c in labels]) == want


def test_only_assistant_tokens():
    labels = np.array([1, 2, 2, 1, 2])
    assert spans.decode_spans(labels, np.array([0, 0, 1, 1, 1], bool)) == [(3, 5)]


def test_same_as_on_the_device():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (50, 17))
    slots = np.asarray(jax.vmap(lambda row: device_spans.span_slots(row, 17))(labels))
    for row, slot in zip(labels, slots, strict=True):
        want = [(np.flatnonzero(s)[0], np.flatnonzero(s)[-1] + 1) for s in slot if s.any()]
        assert spans.decode_spans(row) == want


def test_span_f1_needs_exact_boundaries():
    counts = [spans.span_counts([(0, 2), (3, 4)], [(0, 2), (3, 5)]), spans.span_counts([], [(1, 2)])]
    assert counts[0] == {"matched": 1, "predicted": 2, "target": 2}
    assert spans.span_scores(counts) == {"precision": 0.5, "recall": 1 / 3, "f1": pytest.approx(0.4)}
    assert spans.span_scores([])["f1"] == 0.0


def test_tag_accuracy_counts_what_occurs():
    counts = spans.bio_counts([0, 1, 2, 0], [0, 1, 2, 2])
    assert spans.bio_accuracy(counts) == {"O": 1.0, "B": 1.0, "I": 0.5}
    counts = spans.bio_counts([0, 1, 2, 0], [0, 1, 2, 2], np.array([1, 1, 0, 0], bool))
    assert spans.bio_accuracy(counts) == {"O": 1.0, "B": 1.0, "I": None}
