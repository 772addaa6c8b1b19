"""Both stages of the paper as a user runs them, on small folders in the real layouts, at tiny sizes.

Sizes, images of a micro-batch and the number of steps are overridden; the mixture, the number of micro-batches, schedule and
losses are those of the configs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from paper_data import REFER, write_mixture, write_partonomy

from data_pipelines.kinds import FAMILIES
from plum_jax import base, loading
from plum_jax.config_io import config_from_json, load_config
from plum_jax.logger import read_metrics

ROOT = Path(__file__).resolve().parent.parent
SIZES = [
    "tokenizer=tiny", "model.llama.vocab_size=1024", "model.llama.width=16", "model.llama.depth=2", "model.llama.heads=2",
    "model.llama.mlp=24", "model.clip.image_size=24", "model.clip.patch=12", "model.clip.width=16", "model.clip.depth=1",
    "model.clip.heads=2", "model.clip.mlp=24", "model.sam.image_size=32", "model.sam.patch=8", "model.sam.width=16",
    "model.sam.depth=2", "model.sam.heads=2", "model.sam.mlp=24", "model.sam.window=3", "model.sam.global_blocks=(1,)",
    "model.sam.out_width=16", "model.decoder.heads=2", "model.decoder.mlp=24", "model.decoder.mask_channels=8",
    "model.tagger.heads=2", "model.tagger.mlp=24", "model.feedback_heads=2", "data.canvas=(64,64)", "train.log_every=1",
    "train.save_every=2",
]  # fmt: skip
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # one device, little optimised
STEPS = 2


def plum(*words):
    """The command line `plum ...` in a process of its own -> what it printed."""
    env = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "plum_jax.cli", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(spec, workdir, *values):
    overrides = [*SIZES, f"train.steps={STEPS}", *values]
    return plum("train", f"--config={spec}", f"--workdir={workdir}", *(f"--config.{value}" for value in overrides))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return write_mixture(root / "mixture"), write_partonomy(root / "partonomy")


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """Stage 1, and its weights for stage 2 -> (run folder, base weights)."""
    run, between = (tmp_path_factory.mktemp("first") / name for name in ("stage1", "base"))
    train("configs/plum.py:size=7b", run, f"data.root={data[0]}", "data.global_batch=32")  # 8 micro-batches of (3, 4)
    said = plum("convert", f"--checkpoint={run}", "--to=base", f"--out={between}")
    assert "Next: plum train --config=configs/partonomy.py" in said
    return run, between


def test_stage_1_trains_on_the_mixture(first):
    check_stage1(first[0], load_config("plum"), 32)


def test_the_base_holds_every_parameter_of_the_run_as_it_is(first):
    run, between = loading.load_model(first[0]), base.open_base(first[1])
    params, stored = flatten_dict(run.params, sep="/"), between.about["parameters"]
    assert stored.keys() == params.keys() and not between.missing
    for path, array in parameters_of(between).items():
        assert array.dtype == params[path].dtype, path
        np.testing.assert_array_equal(array, np.asarray(params[path]), err_msg=path)
    assert np.any(np.asarray(params["llama/layers/q_proj/lora_b"]))  # stage 1 moved the adapters, and they are kept apart


def test_stage_2_goes_on_from_stage_1_on_all_subsets(first, data, tmp_path):
    stage2(tmp_path, "configs/partonomy.py:size=7b", first, data, 8)
    check_stage2(tmp_path, load_config("partonomy"), 8, first[1])


@pytest.mark.slow
def test_both_stages_as_the_reference_ran_them(first, data, tmp_path):
    """100 and 10 micro-batches, of one image each."""
    spec = "configs/plum.py:size=7b,reference=1"
    train(spec, tmp_path / "stage1", f"data.root={data[0]}", "data.global_batch=100")
    check_stage1(tmp_path / "stage1", load_config(spec), 100)
    spec = "configs/partonomy.py:size=7b,reference=1"
    stage2(tmp_path / "stage2", spec, first, data, 10)
    check_stage2(tmp_path / "stage2", load_config(spec), 10, first[1])


def stage2(workdir, spec, first, data, images):
    values = (f"base={first[1]}", "tokenizer=", f"data.root={data[1]}", f"data.global_batch={images}")
    train(spec, workdir, *values)


def parameters_of(opened):
    """Base -> {path: array} as it is stored, layers stacked."""
    about = opened.about["parameters"]
    keys = [(path, i) for path, x in about.items() for i in (range(x["shape"][0]) if x["stacked"] else [None])]
    read, found = base.read_slices(opened.folder / "params", about, keys), {}
    for path, layer in keys:
        found.setdefault(path, []).append(read[path, layer])
    return {path: np.stack(parts) if about[path]["stacked"] else parts[0] for path, parts in found.items()}


def check_stage1(folder, paper, images):
    config, record = config_from_json((folder / "config.json").read_text()), json.loads((folder / "run.json").read_text())
    same_recipe(config, paper)
    shares = {source["dataset"]: source["share"] for source in record["sources"]}
    wanted = dict.fromkeys(FAMILIES["semantic"], 0.45 / 5) | dict.fromkeys(REFER, 0.25 / 4)
    assert shares == pytest.approx(wanted | {"llava_instruct_150k": 0.25, "reason_seg": 0.05}, abs=1e-6)
    counts = record["data"]["families"]
    assert sum(found["draws"] for found in counts.values()) == STEPS * images
    assert not any(name.startswith("skipped") for found in counts.values() for name in found)
    finite_rows(folder)


def check_stage2(folder, paper, images, between):
    config, record = config_from_json((folder / "config.json").read_text()), json.loads((folder / "run.json").read_text())
    same_recipe(config, paper)
    (source,) = record["sources"]
    assert source["family"] == "explanatory" and source["records"] == 6  # the images of both subsets
    assert record["data"]["families"]["explanatory"]["draws"] == STEPS * images
    finite_rows(folder)
    trained, started = flatten_dict(loading.load_model(folder).params, sep="/"), parameters_of(base.open_base(between))
    moved = {path for path in trained if not np.array_equal(np.asarray(trained[path]), np.asarray(started[path]))}
    assert {path.partition("/")[0] for path in moved} == {
        "llama", "span_tagger", "span_projector", "mask_decoder", "feedback", "prompt_encoder"
    }  # fmt: skip
    frozen = ("clip/", "sam_encoder/", "projector/", "llama/layers/gate_proj")
    assert not any(path.startswith(frozen) for path in moved)


def same_recipe(config, paper):
    """What a run did is what the config of the paper says, where sizes do not force another number."""
    assert config.loss == paper.loss and config.optim == paper.optim and config.trainable == paper.trainable
    assert config.data.sources == paper.data.sources and config.data.micro_batches == paper.data.micro_batches
    assert config.train.nonfinite == paper.train.nonfinite
    for name in ("dtype", "logits_dtype", "remat", "feedback"):
        assert config.model[name] == paper.model[name]


def finite_rows(folder):
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        for name in ("loss", "language", "tag", "shape", "bce", "reference", "grad_norm"):
            assert np.isfinite(row[name]), (row["step"], name)
