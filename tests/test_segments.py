"""gIoU, cIoU and no-target accuracy against numbers worked out by hand and against a transcription of GRES' counting."""

import numpy as np
import pytest

from plum_jax import coco
from plum_jax.evaluation.prediction import Span
from plum_jax.evaluation.segments import class_summary, compare, summary, union_of


def mask(*cells, hw=(2, 4)):
    flat = np.zeros(hw, bool).reshape(-1)
    flat[list(cells)] = True
    return flat.reshape(hw)


def record(numbers, has_target=True, image="a", name="x"):
    return {**numbers, "has_target": has_target, "has_span": True, "image_path": image, "name": name}


def test_one_mask_against_its_target():
    found = compare(mask(0, 1, 2), mask(1, 2, 3))
    assert (found["intersection"], found["union"], found["iou"], found["pixels"]) == (2, 4, 0.5, 3)
    assert compare(mask(), mask())["iou"] == 1.0
    assert compare(mask(0), None) == {"intersection": 0, "union": 1, "iou": 0.0, "gmiou": 0.0, "pixels": 1}
    with pytest.raises(ValueError, match="mask is 2 x 4, target 4 x 2"):
        compare(mask(0), mask(0, hw=(4, 2)))


def test_ignored_pixels_count_neither_way_unless_the_reference_is_followed():
    found = compare(mask(0, 1, 7), mask(0, 1), mask(6, 7))
    assert (found["intersection"], found["union"], found["iou"], found["gmiou"], found["pixels"]) == (2, 2, 1.0, 1.0, 2)
    found = compare(mask(0, 1, 7), mask(0, 1), mask(6, 7), ignored_as_foreground=True)
    assert (found["iou"], found["gmiou"]) == (1.0, 3 / 4)  # D33: target 0, 1, 6, 7
    assert compare(mask(0), mask(0), mask(4, 5, 6), ignored_as_foreground=True)["gmiou"] == 0.25  # the toy case of D 5.2


def test_few_pixels_are_none():
    assert compare(mask(0, 1), None, least_pixels=3)["iou"] == 1.0
    found = compare(mask(0, 1), mask(0, 1, 2, 3), least_pixels=3)
    assert (found["intersection"], found["union"], found["iou"], found["pixels"]) == (0, 4, 0.0, 0)
    assert compare(mask(0, 1), mask(0, 1), least_pixels=2)["iou"] == 1.0


def test_means_by_hand():
    records = [
        record(compare(mask(0, 1), mask(0, 1))),  # IoU 1
        record(compare(mask(0), mask(0, 1, 2, 3))),  # 1/4
        record(compare(mask(5), mask(6)), image="b"),  # 0
    ]
    found = summary(records)
    assert found["giou_mean_over_samples"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert found["ciou_cumulative"] == (2 + 1 + 0) / (2 + 4 + 2)
    assert found["precision_at_0.5"] == pytest.approx(1 / 3)
    assert found["gmiou_micro"] == pytest.approx(1.25 / 3)
    assert found["gmiou_macro"] == pytest.approx((1.25 / 2 + 0) / 2)
    assert (found["n_samples"], found["n_images"], found["n_no_target"], found["n_empty_masks"]) == (3, 2, 0, 0)
    assert "n_acc" not in found


def test_no_target_by_hand():
    records = [
        record(compare(mask(), None), has_target=False),  # right: IoU 1, nothing to the union
        record(compare(mask(0, 1, 2), None), has_target=False),  # wrong: 0, three pixels to the union
        record(compare(mask(0, 1), mask(0, 1))),
        record(compare(mask(), mask(0, 1, 2))),  # a target that was refused
    ]
    found = summary(records)
    assert found["giou_mean_over_samples"] == (1 + 0 + 1 + 0) / 4
    assert found["giou_mean_over_samples_with_target"] == 0.5
    assert found["ciou_cumulative"] == 2 / (0 + 3 + 2 + 3)
    assert (found["n_acc"], found["t_acc"], found["n_no_target"]) == (0.5, 0.5, 2)
    assert found["precision_at_0.9"] == 0.5  # of the samples with a target


def test_random_masks_agree_with_counting_as_in_gres():
    """GRES: true positive = no target and none predicted, false negative = no target but a mask, and so on."""
    rng = np.random.default_rng(0)
    records, ious, inter, union, table = [], [], 0, 0, {"TP": 0, "TN": 0, "FP": 0, "FN": 0}
    for _ in range(300):
        target = rng.random((6, 7)) < rng.choice([0.0, 0.3, 0.8])
        predicted = rng.random((6, 7)) < rng.choice([0.0, 0.1, 0.5])
        no_target, refused = not target.any(), predicted.sum() < 5
        predicted_or_none = predicted & (not refused)
        i, u = int((predicted_or_none & target).sum()), int((predicted_or_none | target).sum())
        if no_target:
            table["TP" if refused else "FN"] += 1
            ious.append(float(refused))
            union += 0 if refused else int(predicted.sum())
        else:
            table["FP" if refused else "TN"] += 1
            ious.append(i / u)
            inter, union = inter + i, union + u
        records.append(record(compare(predicted, None if no_target else target, least_pixels=5), not no_target))
    found = summary(records)
    assert found["giou_mean_over_samples"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert found["ciou_cumulative"] == pytest.approx(inter / union, abs=1e-12)
    assert found["n_acc"] == pytest.approx(table["TP"] / (table["TP"] + table["FN"]), abs=1e-12)
    assert found["t_acc"] == pytest.approx(table["TN"] / (table["TN"] + table["FP"]), abs=1e-12)
    assert min(table.values()) > 5


def test_classes_are_summed_before_they_are_divided():
    records = [
        record(compare(mask(0), mask(0, 1)), name="sky"),
        record(compare(mask(0, 1, 2, 3), mask(0, 1, 2, 3)), name="sky"),
        record(compare(mask(), mask(4)), name="wall"),
    ]
    found = class_summary(records)
    assert found["classes"] == {
        "sky": {"iou_cumulative": 5 / 6, "n_samples": 2}, "wall": {"iou_cumulative": 0.0, "n_samples": 1},
    }  # fmt: skip
    assert found["miou_of_classes_present"] == pytest.approx(5 / 12)


def test_only_usable_spans_are_united():
    span = lambda cells, status="ok": Span("x", coco.encode(mask(*cells)), status=status)  # noqa: E731
    united = union_of((span((0,)), span((1, 2)), span((7,), "low_confidence")), (2, 4))
    np.testing.assert_array_equal(united, mask(0, 1, 2))
    assert not union_of((), (2, 4)).any()
    assert summary([])["giou_mean_over_samples"] is None
