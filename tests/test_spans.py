import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plum_jax.spans import pool_spans, slots_of, span_slots

O, B, I = 0, 1, 2  # noqa: E741
LENGTH, SLOTS = 12, 4
jitted = jax.jit(span_slots, static_argnums=1)


def loop(labels):
    """M 3.3 as a left-to-right scan -> list of half-open intervals."""
    spans, start = [], None
    for t, label in enumerate(labels):
        if label != I and start is not None:
            spans.append((start, t))
            start = None
        if label == B:
            start = t
    return spans + ([(start, len(labels))] if start is not None else [])


def as_slots(intervals, length, slots):
    t = np.arange(length)
    rows = [(t >= a) & (t < b) for a, b in intervals[:slots]]
    return np.array(rows + [np.zeros(length, bool)] * (slots - len(rows)))


def spans_of(labels):
    return [tuple(np.flatnonzero(row)) for row in np.asarray(span_slots(np.array(labels), SLOTS)) if row.any()]


def test_rules():
    assert spans_of([O, B, I, O, B, O]) == [(1, 2), (4,)]
    assert spans_of([B, B, I]) == [(0,), (1, 2)]  # a B closes the open span
    assert spans_of([I, I, O, I]) == []  # an I without a B is outside
    assert spans_of([B, O, I, I]) == [(0,)]  # an I after an O does not resume
    assert spans_of([O, O, B, I]) == [(2, 3)]  # open at the end of the sequence
    assert spans_of([B] * 6) == [(0,), (1,), (2,), (3,)]  # the rest has no slot
    assert spans_of([O, O]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([O, B, I]), min_size=LENGTH, max_size=LENGTH))
def test_slots_are_the_plain_loop(labels):
    got = jitted(np.array(labels, np.int8), SLOTS)
    np.testing.assert_array_equal(got, as_slots(loop(labels), LENGTH, SLOTS))


def test_slots_of_constructed_spans_agree_with_their_labels():
    labels = np.array([O, B, I, B, O, B, I, I])
    owner = np.array([0, 1, 1, 2, 0, 3, 3, 3], np.int8)
    np.testing.assert_array_equal(slots_of(owner, 4), span_slots(labels, 4))


def test_pooling_is_the_mean_over_each_slot():
    features = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    slots = as_slots([(1, 4), (6, 8)], 8, 3)
    got = pool_spans(features, slots)
    np.testing.assert_allclose(got[0], features[1:4].mean(0), atol=1e-6)
    np.testing.assert_allclose(got[1], features[6:8].mean(0), atol=1e-6)
    np.testing.assert_array_equal(got[2], 0)


def test_pooling_keeps_bfloat16():
    features = np.ones((8, 5), jax.numpy.bfloat16)
    assert pool_spans(features, as_slots([(1, 4)], 8, 2)).dtype == jax.numpy.bfloat16
