"""Bootstrap intervals: the same numbers as a plain loop, wider for fewer images, the questions of an image drawn together."""

import numpy as np
import pytest

from plum_jax.evaluation import bootstrap


def test_equal_to_a_plain_loop():
    rng = np.random.default_rng(1)
    images = [f"images/{i}.png" for i in rng.integers(0, 12, 50)]
    above, below = rng.random(50), rng.integers(0, 3, 50)
    got = bootstrap.intervals(images, {"x": (above, below), "mean": (above, np.ones(50))}, resamples=200, seed=3)
    names = sorted(set(images))
    draws = np.random.default_rng(3).integers(len(names), size=(200, len(names)))
    values = []
    for draw in draws:
        rows = [k for i in draw for k in range(50) if images[k] == names[i]]
        values.append(sum(above[k] for k in rows) / sum(below[k] for k in rows))
    np.testing.assert_allclose(got["x"], np.quantile(values, [0.025, 0.975]))
    assert got["mean"][0] < above.mean() < got["mean"][1]


def test_chunks_do_not_matter(monkeypatch):
    sums = np.random.default_rng(0).random((40, 3, 2))
    whole = bootstrap.resampled(sums, 30)
    assert whole.shape == (30, 3, 2)
    monkeypatch.setattr(bootstrap, "CHUNK", 100)
    np.testing.assert_allclose(bootstrap.resampled(sums, 30), whole)


def test_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = bootstrap.intervals(np.arange(60), {"x": (rng.random(60), np.ones(60))}, 300, trial)["x"]
        inside += low <= 0.5 <= high
    assert 175 <= inside <= 199


def test_questions_of_an_image_are_not_independent():
    values = np.repeat(np.random.default_rng(0).random(20), 10)
    one = {"x": (values, np.ones(200))}
    together = bootstrap.intervals(np.repeat(np.arange(20), 10), one)["x"]
    apart = bootstrap.intervals(np.arange(200), one)["x"]
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_nothing_to_average_has_no_interval():
    assert bootstrap.intervals([], {"x": ([], [])}) == {"x": None}
    assert bootstrap.intervals(["a"], {"x": ([0], [0]), "y": ([1], [2])}) == {"x": None, "y": [0.5, 0.5]}
    assert bootstrap.ratio([1.0, 0.0], [2.0, 0.0])[0] == 0.5 and np.isnan(bootstrap.ratio(0.0, 0.0))
    assert bootstrap.sums_per_image(["b", "a", "b"], [1, 2, 3]).tolist() == [2, 4]
    with pytest.raises(ValueError, match="1 values for 2 images"):
        bootstrap.intervals(["a", "b"], {"x": ([1], [1])})
