"""A loss or a gradient that is not finite: what is kept, who decides, and what is never saved."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures_partonomy import write_folder
from test_train import SMALL

from plum_jax import loading, nonfinite, objective, train
from plum_jax.checkpoint import steps_in
from plum_jax.config_io import config_from_json, load_config
from plum_jax.logger import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parent.parent
BAD = 5  # the sample whose gradient is not finite; its image is in one batch of an epoch
IMAGES, BATCH, STEPS = 24, 8, 9  # three steps an epoch
GOOD_LOSS = objective.make_loss


def poisoned_loss(*args):
    """make_loss, with a term that is 1 or 0, whose gradient is no number where the batch holds sample BAD."""
    loss_fn, count = GOOD_LOSS(*args)

    def poisoned(params, frozen, batch, totals, key):
        loss, sums = loss_fn(params, frozen, batch, totals, key)
        bias = params["span_tagger"]["out"]["bias"].sum()
        term = jax.numpy.sqrt(jax.numpy.where((batch.sample_id == BAD).any(), 0.0 * bias, 1.0))
        return loss + term, {**sums, "loss": (loss + term, sums["loss"][1])}

    return poisoned, count


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, images=IMAGES)
    return folder


@pytest.fixture
def run(data, monkeypatch):
    """run(workdir, *overrides) trains on the data with the poisoned loss -> TrainResult."""
    monkeypatch.setattr(objective, "make_loss", poisoned_loss)
    sizes = [f"data.folder={data}", f"data.global_batch={BATCH}", "data.grounded=(1,1)", f"train.steps={STEPS}"]
    often = ["train.log_every=1", "train.save_every=1", "train.keep=20"]

    def run(workdir, *values):
        return train.train(load_config("tiny", [*SMALL, *sizes, *often, *values]), workdir)

    return run


def assert_finite_checkpoints(workdir):
    steps = steps_in(workdir / "checkpoints")
    for step in steps:
        params = loading.load_model(workdir / "checkpoints" / str(step)).params
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params)), step
    return steps


def test_a_gradient_that_is_not_finite_stops_and_then_is_left_out(run, tmp_path, capsys):
    with pytest.raises(
        FloatingPointError, match=r"gradients of 1 of \d+ parameters are not finite \(span_tagger/out/bias\)"
    ) as error:
        run(tmp_path)
    bad = int(str(error.value).partition(" at step ")[2].partition(",")[0])
    assert 1 <= bad <= 3 and f"{BAD}" in str(error.value) and "--config.train.nonfinite=skip" in str(error.value)
    place = tmp_path / "nonfinite" / str(bad)
    assert sorted(p.name for p in place.iterdir()) == ["batch_0.npz", "config.json", "report.json", "samples_0.json"]
    report = json.loads((place / "report.json").read_text())
    assert report["step"] == bad and report["gradients"] == ["span_tagger/out/bias"]
    assert report["metrics"]["grad_norm"] == "nan" and np.isfinite(report["metrics"]["loss"])
    samples = json.loads((place / "samples_0.json").read_text())
    assert {"sample_id": BAD, "dataset": "partonomy", "record": BAD, "name": f"images/train_{BAD}.png"} in samples
    with np.load(place / "batch_0.npz") as batch:
        assert batch["sample_id"].tolist() == [sample["sample_id"] for sample in samples]
        assert batch["tokens"].shape[0] == BATCH and batch["masks"].any()
    assert config_from_json((place / "config.json").read_text()).train.nonfinite == "stop"
    assert steps_in(tmp_path / "checkpoints") == list(range(1, bad))  # the steps before it, and nothing after
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"

    result = run(tmp_path, "train.nonfinite=skip")
    out = capsys.readouterr().out
    assert result.step == STEPS and f"warning: step {bad} is left out: the loss is" in out
    assert "3 steps made no update" in out  # three epochs
    rows = read_metrics(tmp_path)
    left_out = [row["step"] for row in rows if row["skipped_steps"]]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and len(left_out) == 3 and left_out[0] == bad
    assert all(np.isnan(row["loss"]) == (row["step"] in left_out) for row in rows)
    assert len({row["lr"] for row in rows}) == STEPS - 3  # the schedule does not move on with them
    assert json.loads((tmp_path / "run.json").read_text())["skipped_steps"] == 3
    assert_finite_checkpoints(tmp_path)
    same = [jax.tree.leaves(loading.load_model(tmp_path / "checkpoints" / str(step)).params) for step in (bad, bad + 1)]
    if bad > 1:
        before = jax.tree.leaves(loading.load_model(tmp_path / "checkpoints" / str(bad - 1)).params)
        assert all(np.array_equal(a, b) for a, b in zip(before, same[0], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(*same, strict=True))


def test_too_many_in_a_row_stop_a_run_that_skips(run, tmp_path, monkeypatch):
    monkeypatch.setattr("test_nonfinite.BAD", 0)
    values = ["data.global_batch=24", "train.nonfinite=skip", "train.max_skipped=4"]  # every batch has every sample
    with pytest.raises(FloatingPointError, match="step 5, the 5th in a row .* raise --config.train.max_skipped, which is 4"):
        run(tmp_path, *values)
    assert sorted(int(p.name) for p in (tmp_path / "nonfinite").iterdir()) == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "nonfinite").glob("*/batch_0.npz"))) == nonfinite.BATCHES
    assert not (set(assert_finite_checkpoints(tmp_path)) - {1, 2, 3, 4})


def test_an_update_that_leaves_the_numbers_is_not_saved(run, tmp_path, monkeypatch):
    """Loss and gradient are finite, the learning rate is beyond float32: what is wrong is the state alone."""
    monkeypatch.setattr("test_nonfinite.BAD", -1)
    with pytest.raises(FloatingPointError, match="of the state after step 1 are not finite, which is not saved therefore"):
        run(tmp_path, "optim.lr=1e39", "optim.warmup_steps=0")
    assert not steps_in(tmp_path / "checkpoints")


PROGRAM = """
import sys
from pathlib import Path
from plum_jax.processes import start_processes
start_processes()
import jax, jax.numpy as jnp, numpy as np, optax
from types import SimpleNamespace
from configs.tiny import get_config
from plum_jax.batch import Batch
from plum_jax.metrics import StepMetrics
from plum_jax.nonfinite import Guard
from plum_jax.sharding import make_mesh, put_batch, tree_sharding
from plum_jax.train_step import init_state, make_train_step

me, tx = jax.process_index(), optax.adam(0.1)
mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1))
def loss_fn(params, frozen, batch, totals, key):
    loss = (params["a"] * batch.loss_weight).sum()
    return loss, {"loss": (loss, jnp.float32(1))}
def rows(step):
    weight = np.full((2, 1, 1), np.nan if (step, me) == (3, 1) else 1.0, np.float32)
    return Batch(**{**dict.fromkeys(Batch._fields), "loss_weight": weight, "sample_id": 10 * me + np.arange(2)})
class Folder(list):
    dataset = "partonomy"
    def __getitem__(self, index):
        return SimpleNamespace(image=f"{index}.png")
with jax.set_mesh(mesh):
    start = lambda: init_state({"a": jnp.ones(1)}, tx)
    sharding = tree_sharding(jax.eval_shape(start), mesh)
    state = jax.jit(start, out_shardings=sharding)()
    step_fn = make_train_step(loss_fn, lambda batches: {}, tx, sharding)
    guard = Guard(get_config(), sys.argv[1], Folder(), state, 0)
    meter = StepMetrics(lambda step, row: None, log_every=1, images=4, left_out=guard.left_out)
    try:
        for step in range(1, 9):
            batch = rows(step)
            state, sums = step_fn(state, {}, put_batch(batch, mesh, 1), jax.random.key(0))
            guard.remember(step, batch, sums)
            meter.add(step, sums, 0.0)
    except FloatingPointError as error:
        print(f"STOPPED before {step}: {error}", flush=True)
"""


def test_two_processes_stop_together_and_each_keeps_its_rows(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for process in range(2):
        about = dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(process), JAX_COORDINATOR_ADDRESS=address)
        env = {**os.environ, **about, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process, done in enumerate(started):
        out, err = done.communicate(timeout=300)
        assert "STOPPED before 5: the loss is nan at step 3" in out, (process, out, err)
    place = tmp_path / "nonfinite" / "3"
    for process in range(2):
        samples = json.loads((place / f"samples_{process}.json").read_text())
        assert [sample["name"] for sample in samples] == [f"{10 * process}.png", f"{10 * process + 1}.png"]
        with np.load(place / f"batch_{process}.npz") as batch:
            assert np.isnan(batch["loss_weight"]).any() == (process == 1)
    assert json.loads((place / "report.json").read_text())["processes"] == 2
