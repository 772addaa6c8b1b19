"""metrics.csv goes on without a gap or a repeat; running means; a loss that is not finite."""

import errno
import json
import math
import resource

import jax.numpy as jnp
import pytest

from plum_jax.board import history_of
from plum_jax.logger import MetricLogger, read_metrics
from plum_jax.metrics import StepMetrics


def steps(folder):
    return [row["step"] for row in read_metrics(folder)]


def test_resume_drops_the_rows_that_will_be_computed_again(tmp_path):
    logger = MetricLogger(tmp_path)
    for step in (2, 4, 6):
        logger.write(step, {"loss": step / 3, "iou": math.nan})
    logger.close()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("8,0.5")  # a kill in the middle of a line
    assert steps(tmp_path) == [2, 4, 6]
    logger = MetricLogger(tmp_path, start=4)
    logger.write(6, {"loss": 2.0, "iou": 1.0})
    logger.close()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[0]["loss"] == pytest.approx(2 / 3, rel=1e-6) and math.isnan(rows[0]["iou"]) and rows[2]["loss"] == 2.0
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_metrics_csv_tensorboard_keeps_what_it_has(tmp_path, capsys):
    logger = MetricLogger(tmp_path)
    for step in (2, 4, 6):
        logger.write(step, {"loss": step / 4})
    logger.close()
    (tmp_path / "metrics.csv").unlink()
    logger = MetricLogger(tmp_path, start=4)
    logger.write(6, {"loss": 2.0})
    logger.close()
    assert "metrics.csv is missing; it begins anew after step 4" in capsys.readouterr().err
    assert steps(tmp_path) == [6]
    assert history_of(tmp_path / "tensorboard", 6) == [(2, {"loss": 0.5}), (4, {"loss": 1.0}), (6, {"loss": 2.0})]


def test_a_file_of_an_older_version_gains_the_columns_that_it_lacks(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n2,1.5\n4,1.25\n")
    logger = MetricLogger(tmp_path, 2)
    logger.write(4, {"loss": 1.0, "skipped_steps": 0.0})
    logger.close()
    old, new = read_metrics(tmp_path)
    assert math.isnan(old.pop("skipped_steps")) and old == {"step": 2, "loss": 1.5}
    assert new == {"step": 4, "loss": 1.0, "skipped_steps": 0.0}
    with pytest.raises(ValueError, match="metrics"):
        logger = MetricLogger(tmp_path, 4)
        logger.write(6, {"loss": 1.0})


def test_a_new_run_starts_empty_and_only_one_process_writes(tmp_path):
    MetricLogger(tmp_path, write=False).write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    logger = MetricLogger(tmp_path)
    logger.write(2, {"loss": 1.0})
    with pytest.raises(ValueError, match="loss"):
        logger.write(4, {"other": 1.0})
    MetricLogger(tmp_path).close()
    assert steps(tmp_path) == []


def test_a_full_disk_leaves_whole_lines(tmp_path):
    logger, limits = MetricLogger(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    logger.write(2, {"loss": 1.0})
    before = (tmp_path / "metrics.csv").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limits[1]))
    try:
        with pytest.raises(OSError, match="metrics.csv") as caught:
            logger.write(4, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and (tmp_path / "metrics.csv").read_bytes() == before


def stop(step, sums):
    raise FloatingPointError(f"step {step}")


def sums(loss, weight=1.0, skipped=0.0):
    pairs = {"skipped_steps": (skipped, 1), "loss": (loss, 1), "iou": (3.0 * weight, weight)}
    return {name: (jnp.float32(total), jnp.float32(count)) for name, (total, count) in pairs.items()}


def test_means_are_weighted_and_written_a_few_steps_late():
    rows = []
    meter = StepMetrics(lambda step, row: rows.append((step, row)), log_every=2, images=4, left_out=stop)
    for step in range(1, 6):
        meter.add(step, sums(step, weight=step % 2), 0.0)
    assert [step for step, _ in rows] == [2]
    meter.flush(last=True)
    assert [step for step, _ in rows] == [2, 4, 5]
    assert rows[0][1]["loss"] == 1.5 and rows[0][1]["iou"] == 3.0 and rows[2][1]["loss"] == 5.0
    assert {"images_per_second", "data_wait"} <= rows[0][1].keys()


def test_flush_keeps_an_incomplete_row_for_later():
    rows = []
    meter = StepMetrics(lambda step, row: rows.append((step, row)), log_every=4, images=4, left_out=stop)
    meter.add(1, sums(1), 0.0)
    meter.flush()
    assert rows == []
    for step in (2, 3, 4):
        meter.add(step, sums(step), 0.0)
    meter.flush()
    assert [step for step, _ in rows] == [4] and rows[0][1]["loss"] == 2.5


def test_a_row_that_a_kill_cut_in_two_is_that_of_a_whole_run():
    def steps_of(meter, numbers):
        for step in numbers:
            meter.add(step, sums(1 / (step + 3), weight=step % 3 / 7), 0.0)
        meter.flush()

    whole, cut = [], []
    steps_of(StepMetrics(lambda step, row: whole.append((step, row)), log_every=5, images=4, left_out=stop), range(1, 11))
    first = StepMetrics(lambda step, row: cut.append((step, row)), log_every=5, images=4, left_out=stop)
    steps_of(first, range(1, 8))
    second = StepMetrics(lambda step, row: cut.append((step, row)), log_every=5, images=4, left_out=stop)
    second.go_on(json.loads(json.dumps(first.window_json())))
    steps_of(second, range(8, 11))
    assert [step for step, _ in cut] == [step for step, _ in whole] == [5, 10]
    assert [(row["loss"], row["iou"]) for _, row in cut] == [(row["loss"], row["iou"]) for _, row in whole]


def test_a_metric_without_weight_is_nan():
    rows = []
    meter = StepMetrics(lambda step, row: rows.append(row), log_every=1, images=4, left_out=stop)
    meter.add(1, sums(1, weight=0), 0.0)
    meter.flush()
    assert math.isnan(rows[0]["iou"])


def test_a_step_without_an_update_is_told_once_at_the_latest_when_the_row_is_read():
    told, rows = [], []
    meter = StepMetrics(
        lambda step, row: rows.append((step, row)), log_every=2, images=4, left_out=lambda *given: told.append(given)
    )
    for step, skipped in ((1, 0), (2, 1), (3, 1), (4, 1), (5, 0)):
        meter.add(step, sums(math.nan if skipped else step, skipped=skipped), 0.0)
        assert [at for at, _ in told] == [at for at in (2, 3) if at <= step - 2]  # AHEAD steps late
    meter.flush(last=True)
    assert [at for at, _ in told] == [2, 3, 4] and math.isnan(told[0][1]["loss"][0])
    assert [(step, row["skipped_steps"]) for step, row in rows] == [(2, 1), (4, 2), (5, 0)]
    assert rows[0][1]["loss"] == 1.0 and math.isnan(rows[1][1]["loss"]) and rows[2][1]["iou"] == 3.0


def test_a_step_that_stops_the_run_is_found_before_anything_is_saved():
    meter = StepMetrics(lambda step, row: None, log_every=4, images=4, left_out=stop)
    meter.add(1, sums(1), 0.0)
    meter.add(2, sums(math.nan, skipped=1), 0.0)
    with pytest.raises(FloatingPointError, match="step 2"):
        meter.flush()


def test_sparse_columns_are_empty_until_they_are_filled_in(tmp_path):
    logger = MetricLogger(tmp_path, sparse=("val_iou",))
    for step in (2, 4):
        logger.write(step, {"loss": 1.0 * step})
    logger.amend(2, {"val_iou": 0.5})
    logger.close()
    logger = MetricLogger(tmp_path, 4, sparse=("val_iou", "val_loss"))  # a column more than before
    logger.write(6, {"loss": 6.0})
    logger.amend(6, {"val_loss": 3.0})
    logger.close()
    columns = {name: [row[name] for row in read_metrics(tmp_path)] for name in ("loss", "val_iou", "val_loss")}
    assert columns["loss"] == [2, 4, 6] and columns["val_iou"][0] == 0.5 and columns["val_loss"][2] == 3.0
    assert all(math.isnan(columns[name][i]) for name, i in (("val_iou", 1), ("val_iou", 2), ("val_loss", 0), ("val_loss", 1)))
    logger = MetricLogger(tmp_path, 6)  # and a run that does not validate any more
    logger.write(8, {"loss": 8.0})
    assert math.isnan(read_metrics(tmp_path)[-1]["val_iou"])
