"""Quickstart: its small functions, and the whole way at the smallest size that exercises every stage."""

import json
import signal
from types import SimpleNamespace

import pytest

from plum_jax import quickstart
from plum_jax.config_io import load_config
from plum_jax.errors import UserError

SCORES = {
    "span_f1": 0.1, "gmiou_macro": 0.1, "gmiou_micro": 0.1, "gmiou_macro_published": 0.1, "part_accuracy": 0.2,
    "object_accuracy": None, "false_mask_rate": None, "n_instances": 10, "n_skipped": 0,
}  # fmt: skip
BETTER = {**dict.fromkeys(SCORES, 0.5), "n_instances": 10, "n_skipped": 0}
KEYS = {*SCORES, "by_question_type"}


def test_not_improved():
    assert quickstart.not_improved(SCORES, BETTER) == []
    assert quickstart.not_improved(SCORES, {**BETTER, "span_f1": 0.1}) == ["span_f1"]
    assert quickstart.not_improved(SCORES, {**BETTER, "object_accuracy": None}) == ["object_accuracy"]
    before = {**SCORES, "false_mask_rate": 0.4}
    assert quickstart.not_improved(before, BETTER) == ["false_mask_rate"]
    assert quickstart.not_improved(before, {**BETTER, "false_mask_rate": None}) == []


def test_table_shows_both_models():
    text = quickstart.table(SCORES, BETTER)
    assert len(text.splitlines()) == 1 + len(quickstart.TABLE)
    assert "0.200    0.500" in text
    assert "-    0.500" in text


def test_bad_arguments(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (["--steps", "0"], ["--out", str(tmp_path / "file")], ["--out", str(tmp_path / "file" / "x")]):
        with pytest.raises(UserError):
            quickstart.main(arguments)


def test_a_signal_is_heard_while_it_trains(tmp_path, monkeypatch, capsys):
    """Training gets what ends the process at once when there is nothing to save; a run that saved says so in run.json."""
    given = []
    monkeypatch.setattr("plum_jax.train.train", lambda *words: given.append(words) or SimpleNamespace(preempted=True))
    assert quickstart.quickstart(tmp_path / "out", load_config("configs/tiny.py"), data=tmp_path / "data") is None
    (_, run, preemption), record = given[0], tmp_path / "out" / "run.json"
    assert run == tmp_path / "out" / "run" and json.loads(record.read_text())["status"] == "preempted"
    record.write_text(json.dumps({"status": "running"}))
    preemption.leave(signal.SIGTERM)
    assert "Preempted: before the first save" in capsys.readouterr().out
    assert json.loads(record.read_text())["status"] == "preempted"


@pytest.fixture
def config():
    """configs/tiny.py with the smallest model and a few steps, on the eight virtual devices."""
    sizes = {
        "llama": "width=24 depth=1 mlp=32",
        "clip": "image_size=24 width=24 depth=1 mlp=32",
        "sam": "image_size=48 width=24 depth=2 mlp=32 window=2 global_blocks=(1,) out_width=16",
        "decoder": "depth=1 mlp=32 mask_channels=8",
        "tagger": "mlp=32",
    }
    overrides = [f"model.{part}.{item}" for part, items in sizes.items() for item in items.split()]
    run = ["data.global_batch=8", "data.grounded=(1,1)", "train.steps=4", "train.log_every=2", "train.save_every=2"]
    return load_config("configs/tiny.py", overrides + run)


@pytest.mark.slow
def test_whole_way_and_again(tmp_path, monkeypatch, capsys, config):
    """All files are there with the promised keys; a second run of the same command reuses every stage."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "demo"
    sizes = "train=8,val=2,test=3"
    results = quickstart.quickstart(out, config, split_sizes=sizes)
    assert json.loads((out / "results.json").read_text()) == results
    assert {"config", "seed", "train", "before", "after", "report"} <= results.keys()
    assert {"steps", "seconds", "images_per_second"} <= results["train"].keys()
    assert results["train"]["steps"] == 4
    for model in ("before", "after"):
        assert results[model].keys() >= KEYS
        assert all(scores.keys() >= set(SCORES) for scores in results[model]["by_question_type"].values())
    assert (out / results["report"]).stat().st_size > 10_000
    assert list((out / "predictions").iterdir())
    assert (tmp_path / "cache/plum_jax/tiny/checkpoints/4").is_dir()
    capsys.readouterr()
    made = [path for path in out.rglob("*") if path.name in ("instances.jsonl", "metrics.csv", "dataset.json")]
    times = {path: path.stat().st_mtime_ns for path in made}
    assert quickstart.quickstart(out, config, split_sizes=sizes) == results
    assert {path: path.stat().st_mtime_ns for path in times} == times
    shown = capsys.readouterr().out
    assert "Report: " in shown and "Next: " in shown
