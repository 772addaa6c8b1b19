"""Run folders and base weights in a bucket: the real clients of Cloud Storage against a server that keeps objects in memory."""

import json
import os
import signal
import subprocess
import sys
import time

import checkpoint_fixtures
import numpy as np
import pytest
import test_checkpoint
import test_train
import test_validation
from fake_gcs import fake_gcs
from fixtures_partonomy import write_folder

from data_pipelines.tokenizer import load_tokenizer
from plum_jax import base, checkpoint, console, initial, loading, paths, run_record, train
from plum_jax.config_io import load_config
from plum_jax.convert.pipeline import convert
from plum_jax.errors import UserError
from plum_jax.evaluation import folder
from plum_jax.logger import MetricLogger, read_metrics
from plum_jax.sharding import make_mesh

MESH = dict(data=2, fsdp=2, tensor=2)
STEPS = 16


@pytest.fixture(scope="module")
def storage():
    """A bucket named `bucket`, and the environment that leads to it."""
    with fake_gcs("bucket") as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.env.items():
            patch.setenv(name, value)
        import gcsfs  # reads the environment

        gcsfs.GCSFileSystem.clear_instance_cache()
        yield storage
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, images=4)
    write_folder(folder, images=3, split="val", seed=1)
    return folder


@pytest.fixture(scope="module")
def start(storage, data, tmp_path_factory):
    """start(workdir) -> the real command as a process."""
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir):
        values = [*test_train.SMALL, f"data.folder={data}", f"train.steps={STEPS}"]
        command = [sys.executable, "-m", "plum_jax.train", "--config=configs/tiny.py", f"--workdir={workdir}"]
        env = {**os.environ, **storage.env, "XLA_FLAGS": test_train.FLAGS, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        return subprocess.Popen(
            [*command, *(f"--config.{value}" for value in values)],
            cwd=test_train.ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_bucket_and_ends_as_one_on_disk(start, storage, tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0, whole.communicate()[1]
    killed = start("gs://bucket/killed")
    while not storage.names("bucket/killed/checkpoints/8/commit_success.txt"):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert checkpoint.latest_step("gs://bucket/killed") in (8, 12)
    again = start("gs://bucket/killed")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "Resumed step " in out and "output    gs://bucket/killed" in out
    assert "--checkpoint=gs://bucket/killed" in out and "--out=eval" in out  # results of an evaluation are written locally
    same = ("step", "lr", "loss", "language", "tag")  # but not the times
    rows, wanted = (
        [[row[name] for name in same] for row in read_metrics(x)] for x in ("gs://bucket/killed", tmp_path / "whole")
    )
    assert rows == wanted and rows[-1][0] == STEPS  # no gap, no repeat
    ours, theirs = loading.load_model("gs://bucket/killed"), loading.load_model(tmp_path / "whole")
    assert ours.path == f"gs://bucket/killed/checkpoints/{STEPS}" and ours.step == STEPS
    test_train.assert_same(ours.params, theirs.params)
    assert ours.sha256 == run_record.sha256_of(f"gs://bucket/killed/checkpoints/{STEPS}")
    assert json.loads(storage.objects["bucket/killed/run.json"])["status"] == "done"
    assert len(storage.names("bucket/killed/tensorboard/events")) == 1  # drawn anew, the one of the killed run is gone
    kept = {name.split("/")[3] for name in storage.names("bucket/killed/checkpoints/")}
    assert kept == {"12", "16"} and not storage.names("bucket/killed/checkpoints/12/state/tmp")


@pytest.mark.usefixtures("quick_compilation")
def test_validation_in_the_bucket_keeps_the_best(storage, data, monkeypatch):
    def benchmark(model, folder, split, out, **_):
        step = int(model.path.rpartition("/")[2])
        results = {"summary": {"gmiou_macro": test_validation.SCORES[step]}, "counts": {"scored": 6, "skipped": {}}}
        run_record.write_json(out / "results.json", results)
        return results

    monkeypatch.setattr(folder, "evaluate_folder", benchmark)
    train.train(test_validation.config(data, steps=4), "gs://bucket/validated")
    assert checkpoint.read_best("gs://bucket/validated")["step"] == 2
    assert [loading.load_model("gs://bucket/validated", which=which).step for which in ("best", "last")] == [2, 4]
    assert [row["val_gmiou_macro"] for row in read_metrics("gs://bucket/validated")] == [0.5, 0.3]
    for step in (2, 4):
        assert f"bucket/validated/eval/{step}/validation/results.json" in storage.objects
        assert f"bucket/validated/eval/{step}/validation/asked.json" in storage.objects
    with pytest.raises(UserError, match="another config .optim.lr differ"):
        train.train(test_validation.config(data, "optim.lr=0.5", steps=4), "gs://bucket/validated")


def test_a_damaged_checkpoint_is_set_aside_and_half_of_one_is_not_seen(storage, capsys):
    config, mesh = load_config("tiny", test_checkpoint.SMALL), make_mesh(MESH)
    test_checkpoint.save_all("gs://bucket/damaged", config, [2, 4], mesh)
    for name in storage.names("bucket/damaged/checkpoints/4/state/"):
        storage.objects[name] = storage.objects[name][: len(storage.objects[name]) // 2]
    storage.put("bucket", "damaged/checkpoints/6/state/manifest.ocdbt", b"a kill in the middle of a save")
    assert checkpoint.latest_step("gs://bucket/damaged") == 4
    restored, step = test_checkpoint.restore("gs://bucket/damaged", config, mesh)
    assert step == 2
    test_checkpoint.equal(restored["params"], test_checkpoint.make_state(config, mesh, scale=2)[0].params)
    assert "checkpoint 4 cannot be read" in capsys.readouterr().err
    assert storage.names("bucket/damaged/corrupt/4/state/") and not storage.names("bucket/damaged/checkpoints/4/")
    assert not storage.names("bucket/damaged/checkpoints/6/")
    test_checkpoint.save_all("gs://bucket/damaged", config, [4, 6], mesh)  # and the steps can be saved again
    assert checkpoint.steps_in(paths.as_path("gs://bucket/damaged/checkpoints")) == [4, 6]


@pytest.mark.usefixtures("quick_compilation")
def test_base_weights_are_read_from_the_bucket(storage, tmp_path):
    flat, sources = checkpoint_fixtures.write_sources(tmp_path, checkpoint_fixtures.plum_config())
    convert(checkpoint_fixtures.arguments(tmp_path / "base", **{flag: sources[flag] for flag in ("llava", "sam", "clip")}))
    for name in paths.files_below(tmp_path / "base"):
        storage.put("bucket", f"base/{name}", (tmp_path / "base" / name).read_bytes())
    config = initial.resolve_config("tiny", ["base=gs://bucket/base", "tokenizer=", "model.llama.lora_rank=2"])
    assert config.base == "gs://bucket/base" and base.is_base(config.base) and not base.is_base("gs://bucket")
    loaded = loading.initial_model(config)
    initial.check_loaded(base.open_base(config.base), loaded.params)
    kernel = np.asarray(loaded.params["llama"]["layers"]["up_proj"]["kernel"])
    np.testing.assert_array_equal(kernel, flat["llama/layers/up_proj/kernel"])
    assert loaded.tokenizer.get_vocab() == load_tokenizer(tmp_path / "base" / "tokenizer").get_vocab()
    storage.objects["bucket/base/tokenizer/tokenizer.json"] += b" "
    with pytest.raises(UserError, match="gs://bucket/base/tokenizer/tokenizer.json: is missing, or not the file"):
        base.open_base(config.base)


def test_files_that_grow_are_uploaded_now_and_then(storage, monkeypatch):
    logger = MetricLogger("gs://bucket/grown")
    logger.write(2, {"loss": 1.0})
    assert not storage.names("bucket/grown")  # a minute has not passed
    logger.flush()
    assert [row["step"] for row in read_metrics("gs://bucket/grown")] == [2]
    monkeypatch.setattr(paths, "PUBLISH_SECONDS", 0.0)
    logger.write(4, {"loss": 0.5})
    assert [row["step"] for row in read_metrics("gs://bucket/grown")] == [2, 4]
    count = sum(method == "POST" for method, _ in storage.requests)
    logger.mirror.publish()
    assert sum(method == "POST" for method, _ in storage.requests) == count  # nothing has changed
    logger.close()
    (event_file,) = storage.names("bucket/grown/tensorboard/")
    logger = MetricLogger("gs://bucket/grown", start=2)  # the row of step 4 is computed again
    logger.write(4, {"loss": 0.25})
    logger.close()
    assert [row["loss"] for row in read_metrics("gs://bucket/grown")] == [1.0, 0.25]
    (new_file,) = storage.names("bucket/grown/tensorboard/")
    assert new_file != event_file
    mirror = paths.Mirror("gs://bucket/grown", keep=("metrics.csv", "tensorboard", "nothing"))
    assert paths.files_below(mirror.local) == paths.files_below("gs://bucket/grown")
    (mirror.local / new_file.removeprefix("bucket/grown/")).unlink()
    mirror.publish()
    assert storage.names("bucket/grown") == ["bucket/grown/metrics.csv"]


def test_folders_in_a_bucket(storage, tmp_path):
    run = paths.as_path("gs://bucket/folder")
    for name in ("a.json", "b/c.json", "b/d/e.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        for place in (run, tmp_path):
            (place / name).write_bytes(name.encode() * 9)
    assert paths.files_below(run) == paths.files_below(tmp_path) == ["a.json", "b/c.json", "b/d/e.bin"]
    assert run_record.sha256_of(run) == run_record.sha256_of(tmp_path)
    assert paths.files_below(paths.fetched("gs://bucket/folder")) == paths.files_below(run)
    assert paths.fetched(tmp_path) == tmp_path
    for place in (run, tmp_path):
        paths.move_folder(place / "b", place / "moved")
        assert paths.files_below(place) == ["a.json", "moved/c.json", "moved/d/e.bin"]
        paths.remove_folder(place / "moved")
        paths.remove_folder(place / "moved")
        assert paths.files_below(place) == ["a.json"]
    run_record.write_json(run / "facts.json", {"where": run})
    assert json.loads((run / "facts.json").read_text()) == {"where": "gs://bucket/folder"}
    assert paths.absolute("gs://bucket/folder") == run and paths.absolute("x") == paths.as_path("x").absolute()


def test_what_cannot_be_is_refused_in_a_sentence(storage, data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such bucket, or it may not be read"):
        console.check_out("gs://nowhere/run", remote=True)
    with pytest.raises(UserError, match="must be a local folder here; write to one and copy it with gcloud storage cp"):
        console.check_out("gs://bucket/run")
    with pytest.raises(UserError, match="names no bucket"):
        paths.as_path("gs://")
    with pytest.raises(UserError, match="s3://bucket/run: is neither"):
        paths.as_path("s3://bucket/run")
    with pytest.raises(UserError, match="no such checkpoint folder"):
        checkpoint.checkpoint_folder("gs://bucket/nothing")
    with pytest.raises(UserError, match="must be a local folder here; copy it"):
        train.train(load_config("tiny", [*test_train.SMALL, "data.folder=gs://bucket/data"]), tmp_path / "run")
    listed = "({'name':'semantic','weight':1,'datasets':('ade20k',)},)"
    with pytest.raises(UserError, match="must be a local folder here; copy it"):
        train.train(load_config("tiny", [f"data.sources={listed}", "data.root=gs://bucket/data"]), tmp_path / "run")
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gcsfs; run pip install 'plum_jax\[gcs\]'"):
        paths.as_path("gs://bucket/run")
