"""The calibrated score is monotone, close to the IoU it predicts, and survives a file."""

import numpy as np
import pytest

from plum_jax.errors import UserError
from plum_jax.evaluation import calibration


def noisy(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.random(n)
    return raw, np.clip(raw**2 + rng.normal(0, 0.1, n), 0, 1)


def test_fit_is_monotone_and_reduces_the_error():
    raw, iou = noisy()
    curve = calibration.fit(raw, iou)
    grid = curve(np.linspace(0, 1, 101))
    assert (np.diff(grid) >= 0).all() and grid.min() >= 0 and grid.max() <= 1
    held_raw, held_iou = noisy(seed=1)
    before, after = (calibration.expected_error(c, held_raw, held_iou) for c in (None, curve))
    assert before > 0.1 and after < 0.03


def test_fit_against_the_definition():
    """Least squares among non-decreasing sequences, by projected brute force over block boundaries."""
    rng = np.random.default_rng(2)
    iou = rng.random(calibration.MIN_MASKS)
    raw = np.arange(len(iou)) / len(iou)
    want = [max(min(iou[i : j + 1].mean() for j in range(k, len(iou))) for i in range(k + 1)) for k in range(len(iou))]
    curve = calibration.fit(raw, iou)
    assert np.allclose(sorted(set(np.round(want, 9))), np.round(curve.iou, 9))


def test_equal_confidences_are_one_point():
    curve = calibration.fit([0.5] * 30, [0.0, 1.0] * 15)
    assert curve(0.1) == curve(0.9) == 0.5


def test_too_few_masks():
    assert calibration.fit([0.1, 0.2], [0, 1]) is None


def test_raw_confidence():
    logits = np.array([[0.0, 2.0], [-1.0, 4.0]], np.float32)
    want = np.mean(1 / (1 + np.exp(-np.array([2.0, 4.0])))) * 0.5
    assert calibration.raw_confidence(logits, logits > 0, 0.5) == pytest.approx(want)
    assert calibration.raw_confidence(logits, np.zeros((2, 2), bool), 1.0) == 0.0


def test_file_round_trip_and_a_broken_file(tmp_path):
    assert calibration.load(tmp_path) is None
    curve = calibration.fit(*noisy(200), checkpoint="abc")
    path = calibration.save(curve, tmp_path)
    assert calibration.load(tmp_path, "abc") == curve
    assert calibration.load(tmp_path, "of another step") is None
    path.write_text('{"raw": [1, 0], "iou": [0, 1]}')
    with pytest.raises(UserError, match=r"calibration\.json.*delete"):
        calibration.load(tmp_path)
