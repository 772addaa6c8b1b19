"""Validation during training: same updates, every score once, the best checkpoint kept through kills and restarts."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures_partonomy import write_folder
from test_train import SMALL

from data_pipelines.kinds import KINDS, Kind
from plum_jax import checkpoint, loading, train, validation
from plum_jax.config_io import load_config
from plum_jax.errors import UserError
from plum_jax.evaluation import folder
from plum_jax.logger import MetricLogger, read_metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")
STEPS = 8
SCORES = {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.45}  # what the fake benchmark says about a step
OTHERS = ("gmiou_micro", "gmiou_macro_published", "false_mask_rate", "part_accuracy", "span_f1")
TRAINING = ("lr", "loss", "language", "tag", "tag_accuracy", "grad_norm")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, images=4)
    write_folder(folder, images=3, split="val", seed=1)
    return folder


def config(data, *overrides, steps=STEPS):
    values = ["train.save_every=100", "train.keep=1", "eval.every=2", "eval.images=2", f"train.steps={steps}"]
    return load_config("tiny", [*SMALL, *values, f"data.folder={data}", *overrides])


@pytest.fixture
def benchmark(monkeypatch):
    """Replaces the benchmark by SCORES. `calls`: the steps that were scored; `stop_at`: a step at which it is interrupted."""

    class Benchmark:
        calls, stop_at = [], None

        def __call__(self, model, folder, split, out, *, question_types, max_images, log, changed):
            step = int(Path(out).parent.name)
            self.calls = [*self.calls, step]
            assert (split, max_images, question_types) == ("val", 2, None) and model.path.endswith(f"checkpoints/{step}")
            if step == self.stop_at:
                self.stop_at = None
                raise KeyboardInterrupt
            summary = {"gmiou_macro": SCORES[step], "object_accuracy": None, **dict.fromkeys(OTHERS, step / 100)}
            results = {"summary": summary, "counts": {"scored": 6, "skipped": {}}}
            Path(out).mkdir(parents=True, exist_ok=True)
            (Path(out) / "results.json").write_text(json.dumps(results))
            return results

    fake = Benchmark()
    monkeypatch.setattr(folder, "evaluate_folder", fake)
    return fake


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run without validation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.train(config(data, "eval.every=0"), folder)
    return folder


def steps_saved(folder):
    return checkpoint.steps_in(folder / "checkpoints")


def assert_same_training(folder, other):
    rows, wanted = ([[row[name] for name in TRAINING] for row in read_metrics(x)] for x in (folder, other))
    assert rows == wanted
    for a, b in zip(*(np.concatenate([x.ravel() for x in leaves(y)]) for y in (folder, other)), strict=True):
        assert a == b


def leaves(folder):
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(loading.load_model(folder).params)]


def test_validation_changes_no_update_and_keeps_the_best(data, whole, benchmark, tmp_path, capsys):
    train.train(config(data), tmp_path)
    assert benchmark.calls == [2, 4, 6, 8]
    assert_same_training(tmp_path, whole)
    assert not any(name.startswith("val_") for name in read_metrics(whole)[0])
    assert [row["val_gmiou_macro"] for row in read_metrics(tmp_path)] == list(SCORES.values())
    assert math.isnan(read_metrics(tmp_path)[0]["val_object_accuracy"])
    assert checkpoint.read_best(tmp_path) == {"step": 2, "metric": "gmiou_macro", "mode": "max", "value": 0.5}
    assert {2, 8} <= set(steps_saved(tmp_path)) and 4 not in steps_saved(tmp_path)
    assert [loading.load_model(tmp_path, which=which).step for which in ("best", "last")] == [2, 8]
    printed = capsys.readouterr().out
    assert "Validation at step 4 (6 questions): masks gmIoU 0.300" in printed and "| reading parts 0.040" in printed
    assert "best gmiou_macro 0.500 (step 2)" in printed


def test_a_killed_validation_is_made_up_for_and_none_is_done_twice(data, whole, benchmark, tmp_path, capsys):
    benchmark.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        train.train(config(data), tmp_path)
    assert steps_saved(tmp_path) == [2, 4] and checkpoint.read_best(tmp_path)["step"] == 2
    benchmark.stop_at = 8
    with pytest.raises(KeyboardInterrupt):
        train.train(config(data), tmp_path)
    result = train.train(config(data), tmp_path)  # all steps are made, the last score is missing
    assert result.step == STEPS and "Nothing to do" not in capsys.readouterr().out
    assert benchmark.calls == [2, 4, 4, 6, 8, 8]
    assert_same_training(tmp_path, whole)
    assert [row["val_gmiou_macro"] for row in read_metrics(tmp_path)] == list(SCORES.values())
    train.train(config(data), tmp_path)
    assert "Nothing to do" in capsys.readouterr().out and len(benchmark.calls) == 6
    assert checkpoint.read_best(tmp_path)["step"] == 2 and 2 in steps_saved(tmp_path)


def test_a_score_that_was_not_written_into_metrics_is_read_again(data, benchmark, tmp_path, monkeypatch):
    """Killed between results.json and metrics.csv: the same checkpoint is not scored a second time."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricLogger, "amend", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(config(data, steps=2), tmp_path)
    train.train(config(data, steps=2), tmp_path)
    assert benchmark.calls == [2] and read_metrics(tmp_path)[-1]["val_gmiou_macro"] == 0.5


def test_a_best_checkpoint_that_is_damaged_makes_room_for_the_next(data, benchmark, tmp_path):
    train.train(config(data, steps=4), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match="step 2 of its best.json is not there"):
        checkpoint.checkpoint_folder(tmp_path, "best")
    train.train(config(data, steps=6), tmp_path)
    assert checkpoint.read_best(tmp_path)["step"] == 6 and checkpoint.checkpoint_folder(tmp_path, "best").name == "6"


def test_another_metric_and_a_run_that_had_none(data, whole, benchmark, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    train.train(config(data, "eval.every=2", "checkpoint.best_metric=false_mask_rate", "checkpoint.best_mode=min"), folder)
    assert benchmark.calls == [8]  # its last step was never scored
    assert checkpoint.read_best(folder) == {"step": 8, "metric": "false_mask_rate", "mode": "min", "value": 0.08}
    with pytest.raises(UserError, match="no best checkpoint .no validation has scored one.; use --which last"):
        checkpoint.checkpoint_folder(whole, "best")


@pytest.mark.slow
def test_the_scores_are_those_of_plum_evaluate(data, tmp_path):
    """On eight devices, over two micro-batches' worth of sharded parameters."""
    run = tmp_path / "run"
    train.train(config(data, "train.steps=2", "mesh.fsdp=2", "mesh.tensor=2", "eval.question_types=('part_to_whole',)"), run)
    results = folder.evaluate_folder(
        loading.load_model(run), data, "val", tmp_path / "out", question_types=["part_to_whole"], max_images=2, log=None
    )
    row, summary = read_metrics(run)[-1], results["summary"]
    assert row["val_object_accuracy"] == pytest.approx(summary["object_accuracy"]) and results["counts"]["scored"] == 2
    written = json.loads((run / "eval" / "2" / "validation" / "results.json").read_text())
    assert written["summary"]["by_question_type"].keys() == {"part_to_whole"}
    ours, theirs = (x["summary"]["by_question_type"]["part_to_whole"] for x in (written, results))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_held_out_text_has_a_language_loss(data, benchmark, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "vqa", Kind(KINDS["vqa"].family, "source_fixtures:FakeSource", (("dataset", "vqa"),)))
    text = ["eval.text_sources=({'name':'vqa','weight':1,'split':'val'},)", "eval.text_batches=2", f"data.root={tmp_path}"]
    best = ["checkpoint.best_metric=text_loss", "checkpoint.best_mode=min"]
    train.train(config(data, *text, *best, "optim.warmup_steps=1", "optim.lr=1e-2"), tmp_path / "run")
    losses = [row["val_text_loss"] for row in read_metrics(tmp_path / "run")]
    assert len(losses) == 4 and 7 > losses[0] > losses[-1] > 0  # log 1024 = 6.9 before anything is learned
    assert checkpoint.read_best(tmp_path / "run")["value"] == pytest.approx(min(losses))


@pytest.mark.parametrize(
    "override, message",
    [
        ("eval.every=-1", "config.eval.every: -1 is negative"),
        ("eval.every=3", "not a multiple of config.train.log_every"),
        ("eval.images=-1", "config.eval.images: -1"),
        ("eval.split=train", "is what is trained on"),
        ("eval.split=test", "no such question file; it has the splits train, val"),
        ("eval.question_types=('nonsense',)", "no questions of type 'nonsense'"),
        ("checkpoint.best_mode=most", "use max or min"),
        ("checkpoint.best_metric=accuracy", "is not measured; use gmiou_macro"),
        ("checkpoint.best_metric=text_loss", "needs config.eval.text_sources"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(data, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train.train(config(data, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_line_shows_masks_and_reading():
    values = {**dict.fromkeys((*validation.MASKS, *validation.READING), 0.25), "text_loss": 1.5}
    text = validation.line(1200, values, {"scored": 30}, {})
    assert text.startswith("Validation at step 1,200 (30 questions): masks gmIoU 0.250,")
    assert text.endswith("| reading parts 0.250, object 0.250, span F1 0.250, text loss 1.500")
