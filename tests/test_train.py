"""The training command as a user runs it: killed, resumed, refused, on another mesh; and learning by heart."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures_partonomy import write_folder

from plum_jax import loading, train
from plum_jax.config_io import config_from_json, load_config
from plum_jax.errors import UserError
from plum_jax.logger import read_metrics

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
# The language model and the tagger alone: what is tested is the loop, and every compiled second counts.
SMALL = [
    "model.llama.width=24", "model.llama.mlp=32", "model.clip.width=24", "model.clip.mlp=32", "model.clip.depth=1",
    "model.clip.image_size=48", "model.sam.width=24", "model.sam.mlp=32", "model.sam.depth=2", "model.sam.global_blocks=(1,)",
    "model.sam.out_width=16", "model.sam.image_size=32", "model.sam.window=3", "model.decoder.mlp=16", "model.decoder.depth=1",
    "model.tagger.mlp=32", "model.feedback=false", "loss.bce=0", "loss.shape_weight=0", "loss.patch=0", "optim.name=adamw",
    "trainable=llama|span_tagger", "data.global_batch=16", "data.grounded=(1,2)", "train.log_every=2", "train.save_every=4",
]  # fmt: skip
# One device, and a compiler that optimises little.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, images=4)
    return folder


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """start(workdir, *overrides) -> the real command as a process. All of them share one cache of compiled programs."""
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir, *overrides, program=("-m", "plum_jax.train")):
        values = [*SMALL, f"data.folder={data}", f"train.steps={STEPS}", *overrides]
        command = [sys.executable, *program, "--config=configs/tiny.py", f"--workdir={workdir}"]
        env = {**os.environ, "XLA_FLAGS": FLAGS, "XDG_CACHE_HOME": str(cache)}
        return subprocess.Popen(
            [*command, *(f"--config.{value}" for value in values)],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run that nothing interrupted: (run folder, what it printed)."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = start(folder)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return folder, out + err


def wait_for(process, path):
    """Until `path` exists; the process must still be running then."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def steps_saved(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_run_says_what_it_does_and_leaves_what_it_promises(whole, data):
    folder, printed = whole
    for words in ("device    cpu", "output    ", "trainable (", "as the model sees them", "<image>", "the step needs", "loss="):
        assert words in printed, words
    assert f"Wrote {folder}" in printed and "Next: plum evaluate" in printed
    assert steps_saved(folder) == [STEPS - 4, STEPS]
    record = json.loads((folder / "run.json").read_text())
    assert record["step_programs"] == 1
    assert record["status"] == "done" and record["step"] == STEPS and record["trainable"] < record["parameters"]
    assert record["inputs"]["data"]["path"].startswith(str(data)) and {"compile", "loop", "total"} <= record["seconds"].keys()
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    assert {"lr", "loss", "language", "tag", "grad_norm", "images_per_second", "data_wait"} <= rows[0].keys()
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.slow
def test_killed_and_preempted_runs_end_bit_equal_to_an_uninterrupted_one(start, whole, tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(process, folder / "checkpoints" / "8")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = steps_saved(folder)[-1]

    process = start(folder)
    wait_for(process, folder / "checkpoints" / str(killed_at + 12))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"Resumed step {killed_at}" in out and "Preempted: saved step " in out
    assert json.loads((folder / "run.json").read_text())["status"] == "preempted"
    stopped_at = int(out.rpartition("Preempted: saved step ")[2].partition(";")[0])
    assert steps_saved(folder)[-1] == stopped_at < STEPS

    process = start(folder)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"Resumed step {stopped_at}" in out
    ours, theirs = loading.load_model(folder), loading.load_model(whole[0])
    assert ours.step == theirs.step == STEPS
    assert_same(ours.params, theirs.params)
    same = ("step", "lr", "loss", "language", "tag")  # but not the times
    wanted = {row["step"]: [row[name] for name in same] for row in read_metrics(whole[0])}
    rows = [[row[name] for name in same] for row in read_metrics(folder)]
    assert [row[0] for row in rows] == sorted(wanted)  # no gap, no repeat
    assert rows == [wanted[row[0]] for row in rows]


def read_until(process, words):
    """Lines of what a process prints, until one that has the words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_a_stop_before_the_first_save_and_one_after_it(start, tmp_path):
    """SIGTERM while XLA compiles, then Ctrl-C between saves: each says what is saved, and the same command goes on."""
    folder = tmp_path / "run"
    process = start(folder)
    read_until(process, "Compiling the training step")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "Preempted: before the first save; run the same command" in out and not err, err
    assert json.loads((folder / "run.json").read_text())["status"] == "preempted"

    process = start(folder, "train.steps=100000")
    read_until(process, "Compiled in")
    wait_for(process, folder / "checkpoints" / "4")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    saved = steps_saved(folder)[-1]
    assert process.returncode == 130 and f"interrupted; the last saved step is {saved};" in err and "Traceback" not in err
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"


def test_running_a_finished_run_again_changes_nothing(start, whole):
    before = (whole[0] / "metrics.csv").read_bytes()
    process = start(whole[0])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "Nothing to do" in out
    assert (whole[0] / "metrics.csv").read_bytes() == before


def test_a_run_folder_of_another_config_is_refused(start, whole):
    config = (whole[0] / "config.json").read_bytes()
    process = start(whole[0], "optim.lr=0.5", "model.tagger.dropout=0.1")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "another config (model.tagger.dropout, optim.lr differ)" in err and err.count("\n") == 1
    assert (whole[0] / "config.json").read_bytes() == config


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.folder=", "run plum data make"),
        ("data.folder=nowhere", "nowhere"),
        ("trainable=no_such_path", "matches no parameter"),
        ("data.global_batch=12", "devices .data x fsdp. do not divide; set it to 16, or"),
        ("mesh.data=3", "does not multiply to 8 devices"),
        ("train.keep=0", "not a positive number"),
        ("data.micro_batches=0", "config.data.micro_batches: 0 is not a positive number"),
        ("data.grounded=(0,0)", "config.data.grounded: .* is wrong; give"),
        ("data.canvas=(0,8)", "config.data.canvas: .* is wrong; give"),
        ("data.clip_view=foo", "use pad or center_crop"),
        ("data.template=foo", "template 'foo' is unknown"),
        ("data.max_masks=128", "127 or less"),
        ("trainable=((", "is not a regular expression"),
        ("mesh.fsdp=0", "config.mesh.fsdp: 0"),
        ("model.llama.heads=5", "config.model.llama.heads: 5 does not divide"),
        ("model.clip.patch=7", "config.model.clip.patch: 7 does not divide"),
        ("model.llama.vocab_size=512", "too small for the 1024 tokens"),
        ("tokenizer=nowhere", "no tokenizer.json"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(data, tmp_path, override, message):
    config = load_config("tiny", [*SMALL, f"data.folder={data}", override])
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_below_a_file_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="is not a folder"):
            train.train(load_config("tiny", [*SMALL, f"data.folder={data}"]), folder)


@pytest.mark.slow
def test_eight_devices_go_on_where_one_stopped(whole, data, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    more = [f"train.steps={STEPS + 2}", "mesh.fsdp=2", "mesh.tensor=2"]
    result = train.train(load_config("tiny", [*SMALL, f"data.folder={data}", *more]), folder)
    assert result.step == STEPS + 2 and not result.preempted
    assert f"Resumed step {STEPS}" in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(folder)][-2:] == [STEPS, STEPS + 2]


def test_a_loss_that_is_not_finite_stops_and_is_not_saved(start, tmp_path):
    process = start(tmp_path / "run", "optim.lr=1e30", "optim.warmup_steps=0", "optim.clip_norm=1e30")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "the loss is" in err and "lower --config.optim.lr" in err
    assert not steps_saved(tmp_path / "run")


def test_a_mixture_is_trained_on_and_accounted_for(start, tmp_path):
    """Three families from the settings alone; a broken record costs its row, and the run says so."""
    listed = "({'name':'semantic','weight':1,'datasets':('ade20k',)},{'name':'vqa','weight':2.0},{'name':'reason','weight':1})"
    values = [f"data.sources={listed}", "data.folder=", f"data.root={tmp_path}", "data.grounded=()", "train.steps=4"]
    process = start(tmp_path / "run", *values, program=[str(Path(__file__).with_name("train_on_fakes.py"))])
    printed, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert config_from_json((tmp_path / "run" / "config.json").read_text()).data.grounded == (1, 2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [source["dataset"] for source in record["sources"]] == ["ade20k", "vqa", "reason"]
    assert [source["share"] for source in record["sources"]] == [0.25, 0.5, 0.25]
    assert sum(counts["draws"] for counts in record["data"]["families"].values()) == 4 * 16
    assert record["data"]["families"]["vqa"]["draws"] == 32 and record["data"]["families"]["vqa"]["skipped: record"] > 0
    assert "vqa, bad record: record 1: vqa: record 1 is broken" in printed and "(50.0 %)" in printed


@pytest.mark.slow
def test_the_model_learns_four_examples_by_heart(start, tmp_path):
    """The whole model with all losses, through the real entry point: what it was shown it must know."""
    values = [
        "model.llama.width=48", "model.llama.mlp=96", "model.clip.width=48", "model.clip.mlp=96", "model.sam.width=48",
        "model.sam.mlp=96", "model.sam.out_width=32", "model.sam.image_size=64", "model.decoder.mlp=64", "model.tagger.mlp=96",
        "model.feedback=true", "loss.bce=2", "loss.shape_weight=1", "loss.patch=1", "trainable=.*", "optim.lr=3e-3",
        "optim.warmup_steps=10", "data.global_batch=8", "data.grounded=(1,1)", "train.steps=150", "train.log_every=10",
        "train.save_every=150",
    ]  # fmt: skip
    process = start(tmp_path / "run", *values)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    last = read_metrics(tmp_path / "run")[-1]
    assert last["tag_accuracy"] == 1.0 and last["language"] < 0.2 and last["mask_iou"] > 0.7, last


@pytest.mark.parametrize(
    ("splits", "said"), [(("train", "val"), " --split=val"), (("train", "val", "test"), ""), (("train",), ""), ((), "")]
)
def test_next_command_names_a_split_that_the_folder_has(splits, said, tmp_path):
    for split in splits:
        (tmp_path / f"partonomy_qa_pairs_{split}.json").write_text("[]")
    assert train.next_split(tmp_path) == said
