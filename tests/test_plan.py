"""`plum plan`: its arguments are those of the real programs, its figures add up, and its advice holds."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from fixtures_partonomy import write_folder

from data_pipelines.pipeline import batches
from data_pipelines.tokenizer import load_tokenizer
from plum_jax import cli
from plum_jax.batch import Batch
from plum_jax.config_io import load_config
from plum_jax.errors import UserError
from plum_jax.planning import abstract, advice, chips, measure, programs
from plum_jax.planning.traffic import Traffic
from plum_jax.sharding import make_mesh, put_batch
from plum_jax.training_plan import open_state, plan_training

ROOT = Path(__file__).resolve().parent.parent
# A model of every part, as small as it goes: what takes time is the compiler.
SMALL = [
    "model.llama.width=24", "model.llama.mlp=32", "model.clip.width=24", "model.clip.mlp=32", "model.clip.depth=1",
    "model.clip.image_size=24", "model.sam.width=24", "model.sam.mlp=32", "model.sam.depth=2", "model.sam.global_blocks=(1,)",
    "model.sam.out_width=16", "model.sam.image_size=32", "model.sam.window=3", "model.decoder.mlp=16", "model.decoder.depth=1",
    "model.tagger.mlp=32", "loss.patch=0", "optim.name=adamw", "data.canvas=(32,32)", "data.max_tokens=40",
    "data.max_masks=2", "data.max_spans=2", "data.global_batch=32", "eval.max_new_tokens=8",
]  # fmt: skip
FEEDBACK = ["model.feedback=false", "loss.bce=0", "loss.shape_weight=0"]  # and what decodes masks: half of the compilation


@pytest.fixture
def config():
    return load_config("configs/tiny.py", [*SMALL, *FEEDBACK])


@pytest.fixture
def target():
    return chips.open_target("local")


def figures(tree):
    return jax.tree.map(lambda x: (tuple(x.shape), np.dtype(x.dtype)), tree, is_leaf=lambda x: hasattr(x, "dtype"))


@pytest.mark.parametrize("overrides", [["data.micro_batches=2"], ["loss.patch=0", "data.grounded=(3,4)"]], ids=str)
def test_the_batch_is_that_of_the_data_pipeline(overrides, tmp_path):
    write_folder(tmp_path, images=6)
    config = load_config("configs/tiny.py", [f"data.folder={tmp_path}", "data.global_batch=64", *overrides])
    real = next(batches(config, load_tokenizer("tiny")))
    assert figures(abstract.host_batch(config)) == figures(real)
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    placed, found = put_batch(real, mesh, config.data.micro_batches), abstract.device_batch(config, mesh)
    assert figures(found) == figures(placed)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, placed)
    assert isinstance(found, Batch) and (found.patch_part is None) == (config.loss.patch == 0)


@pytest.mark.usefixtures("quick_compilation")
def test_state_and_frozen_parameters_are_those_of_a_run(config):
    config.trainable, config.model.dtype = "llama|span_tagger", "bfloat16"
    config.mesh.fsdp = 4
    mesh = make_mesh(config.mesh)
    plan = plan_training(config, mesh, [[1]])
    with jax.set_mesh(mesh):
        state, frozen, start = open_state(plan, config, mesh, _NoCheckpoint())
    assert start == 0
    wanted_state, wanted_frozen, _, key = abstract.train_arguments(config, plan, mesh)
    for real, wanted in ((state, wanted_state), (frozen, wanted_frozen)):
        assert figures(real) == figures(wanted)
        same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), real, wanted)
        assert all(jax.tree.leaves(same))
        on_first = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real))
        assert abstract.bytes_per_device(wanted) == on_first
    assert key.dtype == jax.random.key(0).dtype


class _NoCheckpoint:
    """What `checkpoint.restore` asks of a checkpointer that holds none."""

    orbax = SimpleNamespace(checkpoints=(), reload=lambda: None)


def test_served_programs_take_the_parameters_of_a_checkpoint_and_the_cache_of_the_longest_answer(config, target):
    prefill, decode = (programs.prepare(name, config, target) for name in ("prefill", "decode"))
    assert prefill.work == (64, "prompts") and decode.work == (64, "tokens")
    assert decode.memory["optimizer"] == 0
    positions = 64 - 1 + (24 // 12) ** 2 + 8  # 40 tokens are padded to 64
    cache = 2 * config.model.llama.depth * 64 * positions * 24 * 4
    assert cache // 8 <= decode.memory["inputs"] < cache // 8 + 1000
    shapes = programs.build(_sizes(config))[1]
    llama = sum(x.size for x in jax.tree.leaves(shapes["llama"]))
    assert decode.memory["parameters"] == prefill.memory["parameters"] == llama * 4  # trained ones are float32, and repeated
    config.trainable, config.model.dtype = "span_tagger", "bfloat16"
    assert programs.prepare("prefill", config, target).memory["parameters"] == llama * 2
    with pytest.raises(UserError, match="--rows 12: 8 devices do not divide it"):
        programs.prepare("decode", config, target, 12)


def _sizes(config):
    return programs.PlumConfig.from_dict(config.model)


@pytest.mark.usefixtures("quick_compilation")
def test_figures_of_a_program_add_up(config, target):
    config.mesh.fsdp, config.model.remat, config.trainable = 8, "full", "lora_|span_tagger"
    program = programs.prepare("train", config, target)
    found = measure.measure(program, target)
    memory = found["memory"]
    assert found["fits"] and found["compiled"] and found["estimate"] is None  # nobody knows the peak of this CPU
    parts = [memory[name] for name in ("parameters", "optimizer", "inputs", "activations", "temporaries", "results", "program")]
    assert memory["total"] >= sum(parts) and min(parts) >= 0
    assert memory["activations"] > 0 and memory["margin"] == pytest.approx(1 - memory["total"] / memory["device"], abs=1e-3)
    assert found["flops"]["executed"] > found["flops"]["model"] > 0
    assert found["collectives"]["all-reduce"]["count"] > 0
    assert found["memory_traffic"] > memory["parameters"]
    traffic = Traffic(found["collectives"], found["memory_traffic"], [])
    fast = measure.estimate(found["flops"], traffic, target._replace(chip=chips.TPUS["v5e"]), program.work)
    assert fast["step_seconds"] == max(fast["seconds"].values()) == fast["seconds"][fast["bound"]]
    assert 0 < fast["mfu"] < 1 and fast["per_second"] == pytest.approx(32 / fast["step_seconds"], rel=1e-3)


def small_memory(monkeypatch, size):
    real = chips.open_target
    monkeypatch.setattr(chips, "open_target", lambda name: real(name)._replace(memory=size))


def run(capsys, *arguments):
    status = cli.main(["plan", "--config=configs/tiny.py", *(f"--config.{x}" for x in [*SMALL, *FEEDBACK]), *arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.usefixtures("quick_compilation")
def test_what_does_not_fit_ends_with_one_and_the_change_that_makes_it_fit(capsys, monkeypatch, target):
    """Memory for a share of the parameters of deep layers, and not for all of them."""
    deep = ["model.llama.depth=12", "model.llama.width=96", "model.llama.mlp=256"]
    options = ["--programs=decode", "--rows=8", *(f"--config.{x}" for x in deep)]
    config = load_config("configs/tiny.py", [*SMALL, *FEEDBACK, *deep, "mesh.fsdp=8"])
    split = measure.measure(programs.prepare("decode", config, target, 8), target)["memory"]["total"]
    small_memory(monkeypatch, round(split * 1.2))
    status, out, err = run(capsys, *options, "--json")
    found = json.loads(out)
    decode = found["programs"]["decode"]
    assert status == 1 and not found["fits"] and not decode["compiled"]
    assert found["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert decode["advice"]["overrides"] == ["mesh.fsdp=8"] and decode["advice"]["fits"]
    assert "it fits with --config.mesh.fsdp=8" in err
    status, out, _ = run(capsys, *options, "--no-advice")
    assert status == 1 and "DOES NOT FIT" in out and "it fits with" not in out
    status, out, err = run(capsys, *options, "--config.mesh.fsdp=8")
    assert status == 0 and "Everything fits" in out and not err


def test_what_cannot_fit_says_how_many_devices_it_takes(capsys, monkeypatch):
    small_memory(monkeypatch, 20_000)
    status, out, _ = run(capsys, "--programs=train")
    assert status == 1 and "it takes at least" in out and "compiled  no: it cannot fit" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v5e-17"], "is no slice of v5e"),
        (["--programs=decode", "--rows=0"], "--rows 0: is not a positive number; give 1 or more"),
        (["--programs=train,fly"], "'fly' is not known; use train, prefill, decode, masks"),
        (["--config.data.global_batch=20"], "which 8 devices (data x fsdp) do not divide; set it to 32, or"),
        (["--config.mesh.fsdp=3"], "does not multiply to 8 devices"),
    ],
)
def test_wrong_use_is_one_sentence(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and words in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_13b_step_that_is_not_split_cannot_fit_and_the_first_advice_splits_it():
    """The default mesh holds the whole model on every chip; arithmetic alone says so, and that sixteen chips hold a share."""
    config = load_config("configs/plum.py:size=13b")
    shapes, axes = programs.build(_sizes(config))[1], ("data", "fsdp", "tensor")
    meshes = {"data": jax.sharding.AbstractMesh((16, 1, 1), axes), "fsdp": jax.sharding.AbstractMesh((1, 16, 1), axes)}
    size = {name: abstract.bytes_per_device(abstract.parameters(config, shapes, mesh)) for name, mesh in meshes.items()}
    assert size["data"] > 16 << 30 > size["fsdp"] * 4
    tried = list(advice._candidates("train", config, 16, None))
    assert tried[0] == (["mesh.fsdp=16"], None)
    assert advice.describe(*tried[0]) == "--config.mesh.fsdp=16"
    assert (["mesh.fsdp=8", "mesh.tensor=2"], None) in tried


def test_candidates_keep_what_the_config_says():
    config = load_config("configs/tiny.py", ["data.global_batch=64", "mesh.data=8"])
    tried = list(advice._candidates("train", config, 8, None))
    assert [x for x, _ in tried] == [
        ["mesh.data=1", "mesh.fsdp=8"],
        ["mesh.data=1", "mesh.fsdp=8", "data.micro_batches=2"],
        ["mesh.data=1", "mesh.fsdp=8", "data.micro_batches=4"],
        ["mesh.data=1", "mesh.fsdp=8", "data.micro_batches=8"],
        ["mesh.data=1", "mesh.fsdp=8", "data.micro_batches=8", "model.remat=full"],
    ]
    assert list(advice._candidates("decode", config, 8, 64))[1] == (["mesh.data=1", "mesh.fsdp=8"], 8)
    config.mesh.fsdp = 3
    assert not list(advice._candidates("train", config, 8, None))


def test_help_imports_no_jax():
    code = "import sys, plum_jax.plan as x\ntry: x.main(['-h'])\nexcept SystemExit: assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="libtpu is made for this platform only")
def test_a_step_compiles_for_a_slice_that_is_not_there():
    """The whole command, for four v5e chips: parameters split, and none gathered whole."""
    options = [*(f"--config.{x}" for x in [*SMALL, *FEEDBACK]), "--config.mesh.fsdp=4"]
    command = [sys.executable, "-m", "plum_jax.cli", "plan", "--config=configs/tiny.py", "--topology=v5e:2x2", "--json"]
    env = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    done = subprocess.run([*command, "--programs=train,decode", *options], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["devices"] == 4 and found["device"] == "TPU v5e" and found["device_memory"] == 16 << 30
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1} and "libtpu" in found["versions"]
    for about in found["programs"].values():
        assert about["compiled"] and about["whole_parameters_gathered"] == [] and about["collectives"]
        assert about["estimate"]["bound"] in ("compute", "memory", "links") and about["estimate"]["step_seconds"] > 0
    assert "plum plan" in done.stderr and "a roofline of peak rates, not a measurement" in done.stderr
