"""Part names, relations of masks, area bins, baselines and the reliability table on cases checked by hand."""

import numpy as np
import pytest

from data_pipelines.partonomy.synonyms import SynonymKey
from plum_jax import coco
from plum_jax.evaluation import area_bins, baselines, calibration, mask_relations, part_names, run_lengths


def square(top, left, size, hw=(20, 30)):
    mask = np.zeros(hw, bool)
    mask[top : top + size, left : left + size] = True
    return coco.encode(mask)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Wheels", "wheel"),
        ("the table-legs.", "table leg"),
        ("table  leg", "Table Legs"),
        ("head light", "head‑light"),  # a non-breaking hyphen
        ("(base)", "base"),
        ("glasses", "glass"),
    ],
)
def test_the_same_by_rules(said, meant):
    assert part_names.by_rules(said) == part_names.by_rules(meant)
    assert part_names.exact(said) != part_names.exact(meant)


def test_different_by_rules_and_synonyms():
    assert part_names.by_rules("left wheel") != part_names.by_rules("wheel")
    key = SynonymKey([["tire", "tyre"], ["headlight", "head light"]])
    assert part_names.by_rules("Tyres", key) == part_names.by_rules("tire", key)
    assert part_names.by_rules("head-light", key) == part_names.by_rules("headlights", key)


def test_lookup_prefers_the_exact_name():
    find = part_names.PartLookup(["wheels", "wheel", "hood"])
    assert find("Wheels") == "wheels" and find("wheel") == "wheel" and find("the wheel") == "wheel"
    assert find("Hoods") == "hood" and find("Hoods", rules=False) is None
    assert find("trunk") is None and find("") is None and find(" . ") is None


def test_counts_of_matches():
    assert part_names.matches(["Lid ", "lid", "lids"], ["lid", "base"]) == 2
    assert part_names.matches(["Lid ", "lid", "lids"], ["lid", "base"], part_names.by_rules) == 3
    assert part_names.distinct_matches(["Lid ", "lid", "lids"], ["lid", "base"]) == (1, 2, 2)
    assert part_names.distinct_matches(["Lid ", "lid", "lids"], ["lid", "base"], part_names.by_rules) == (1, 1, 2)


def test_inside_and_overlap():
    a, b, c, nothing = square(0, 0, 4), square(0, 2, 4), square(0, 0, 2), run_lengths.empty((20, 30))
    np.testing.assert_array_equal(mask_relations.inside_object([a, b, nothing], a), [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(mask_relations.sibling_overlap([a, b, c, nothing]), [0.5, 1.0, 0.0])
    assert mask_relations.sibling_overlap([a]).size == mask_relations.inside_object([], a).size == 0


def test_bins_by_area():
    found = area_bins.by_area([0.0, 0.0005, 0.02, 0.02, 0.1, 0.02], [1.0, 0.5, 0.2, 0.4, 0.9, np.nan])
    assert list(found) == list(area_bins.BINS)
    assert found["below_0.1%"] == {"gmIoU-paired_strict": 0.75, "n_pairs": 2}
    assert found["1%_to_3%"] == {"gmIoU-paired_strict": pytest.approx(0.3), "n_pairs": 2}
    assert found["10%_and_more"]["n_pairs"] == 1 and found["3%_to_10%"] == {"gmIoU-paired_strict": None, "n_pairs": 0}
    assert area_bins.bin_of(0.02) == "1%_to_3%" and area_bins.bin_of(0.0) == "below_0.1%"


def test_baselines_by_hand():
    hw, target = (20, 30), [square(2, 3, 4), square(2, 7, 4)]
    region = run_lengths.union(target)
    found = baselines.scores(target, region, hw, seed=5)
    assert set(found) == set(baselines.NAMES)
    np.testing.assert_array_equal(found["empty"], [0, 0])
    np.testing.assert_allclose(found["whole_image"], [16 / 600] * 2)
    np.testing.assert_array_equal(found["object_box"], [0.5, 0.5])
    np.testing.assert_array_equal(found["object_region"], [0.5, 0.5])
    np.testing.assert_array_equal(found["another_part"], [0, 0])
    again = baselines.scores(target, region, hw, seed=5)
    np.testing.assert_array_equal(found["random_box"], again["random_box"])
    alone = baselines.scores(target[:1], target[0], hw, seed=5)
    assert alone["another_part"].size == 0 and alone["object_box"].tolist() == [1.0]
    nothing = baselines.scores([run_lengths.empty(hw)], run_lengths.empty(hw), hw, seed=0, empty_union="zero")
    assert nothing["empty"].tolist() == [0.0] and nothing["object_box"].tolist() == [0.0]


def test_random_boxes_cover_a_ninth_of_the_image():
    """Nearly: each side is |i - j| + 1 of two uniform draws, (n² - 1) / 3n + 1 on average."""
    rng, hw = np.random.default_rng(0), (40, 60)
    areas = run_lengths.areas([baselines.random_box(hw, rng) for _ in range(2000)])
    assert areas.mean() == pytest.approx((1599 / 120 + 1) * (3599 / 180 + 1), rel=0.06) and areas.min() >= 1


def test_reliability_by_hand():
    table = calibration.reliability([0.05, 0.95, 0.91, 1.0], [0.0, 1.0, 0.7, 0.4], bins=10)
    assert table["n_masks"] == 4 and len(table["bins"]) == 10
    last = table["bins"][-1]
    assert last["n_masks"] == 3 and last["score"] == pytest.approx(0.9533333) and last["iou"] == pytest.approx(0.7)
    assert table["bins"][4] == {"low": 0.4, "high": 0.5, "n_masks": 0, "score": None, "iou": None}
    assert table["expected_calibration_error"] == pytest.approx((0.05 + 3 * 0.2533333) / 4)
    assert calibration.reliability([], [])["expected_calibration_error"] is None
