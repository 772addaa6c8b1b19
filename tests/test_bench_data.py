import json

import pytest

from tools import bench_data


def test_the_benchmark_of_the_data(tmp_path, capsys):
    """Every stage is timed, what was optimised is equal to what it replaced, and the JSON on stdout is that of the file."""
    bench_data.main(["--images=2", "--repeats=1", "--steps=2", f"--json={tmp_path / 'out.json'}"])
    results = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(capsys.readouterr().out) == results
    stages = {"decode", "sam_resize", "clip_resize", "masks", "tokens", "batch", "whole_row_and_batch"}
    assert results["milliseconds_by_stage"].keys() == stages and min(results["milliseconds_by_stage"].values()) > 0
    assert all(found["equal"] for found in results["optimisations"].values()) and len(results["optimisations"]) == 7
    assert results["optimisations"]["the same with 16 masks an image, handed over"]["ratio"] > 2
    here = results["with_workers"]["0"]
    assert here["parent"] > 0 and here["worker"] == 0 and here["images_per_second"] > 0
    assert results["other_resizers"]["clip, JPEG draft mode (with decoding)"]["equal"] is False
    need = results["thirteen_billion_on_eight_h200"]
    assert need["images_per_second_wanted"] == 4 * need["images_per_second_of_the_step"] > 100
    assert need["workers_wanted"] * need["images_per_second_of_a_worker"] > 100


@pytest.mark.slow
def test_who_takes_batches_from_a_worker_has_little_to_do(tmp_path):
    """Processor time of the parent is at most a tenth of a worker's; measured: a hundredth."""
    config, tokenizer = bench_data.configured("tiny")
    source = bench_data.Drawn(bench_data.draw_pictures(tmp_path, 2))
    found = bench_data.with_workers(config, tokenizer, source, 1, 6)
    assert found["worker"] > 1 and found["parent_share"] == found["parent"] / found["worker"] < 0.1
    assert found["law"] == pytest.approx(1e3 / found["worker"])


def test_arithmetic():
    need = bench_data.arithmetic(100.0)
    assert abs(need["images_per_second_of_the_step"] - 8 * 790 * 0.45 / (4 * 13.312 + 0.75 * 5.9)) < 1e-9
    assert need["workers_wanted"] == need["images_per_second_wanted"] / 100
    assert "images_per_second_of_16_workers" not in need
    need = bench_data.arithmetic(100.0, 2.0)
    assert need["images_per_second_of_16_workers"] == need["images_per_second_that_can_be_taken"] == 500
    assert bench_data.arithmetic(100.0, 0.1)["images_per_second_of_16_workers"] == 1600
