"""The two ways that tools/bench_eval.py times give the same, which also checks the runner against whole rows."""

from plum_jax.inference import Model
from tests import eval_fixtures
from tools import bench_eval


def test_both_ways_give_the_same(tmp_path):
    eval_fixtures.write_folder(tmp_path)
    found = bench_eval.measure(Model(eval_fixtures.loaded()), tmp_path, "test", 3)
    assert (found["questions"], found["rows"]) == (9, 3 * (5 + 10 + 10))
    assert found["equal"]["same_choice"] == 1.0 and found["equal"]["mask_iou"] > 0.99
    assert found["equal"]["score_difference"] < 1e-5
    assert found["ratio"] == found["seconds_row_by_row"] / found["seconds"] > 0 and found["seconds_all_protocols"] > 0
