"""Training from base weights, as a user runs it: sizes from the base, frozen weights from there, heads from the seed."""

import re
import shutil

import checkpoint_fixtures as fixtures
import jax
import numpy as np
import pytest
from fixtures_partonomy import write_folder
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from plum_jax import checkpoint, cli, initial, loading, train
from plum_jax.convert.export import export
from plum_jax.convert.pipeline import convert
from plum_jax.convert.tensors import read_folder
from plum_jax.errors import UserError

pytest.importorskip("torch")
TRAINABLE = r"^llama/(embed$|layers/.*lora_)|^(span_tagger|span_projector)/"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """-> ({path: array} that went in, base without PLUM's heads, folder with questions)."""
    root = tmp_path_factory.mktemp("bases")
    flat, paths = fixtures.write_sources(root, fixtures.plum_config())
    convert(fixtures.arguments(root / "base", **{flag: paths[flag] for flag in ("llava", "sam", "clip")}))
    write_folder(root / "data", images=4)
    return flat, root / "base", root / "data"


def flags(base, data, workdir, *overrides):
    values = [
        f"base={base}", f"data.folder={data}", "tokenizer=", f"trainable={TRAINABLE}", "optim.name=adamw", "optim.lr=1e-3",
        "loss.bce=0", "loss.shape_weight=0", "loss.patch=0", "data.global_batch=8", "data.grounded=(1,1)",
        "data.max_tokens=128", "model.llama.lora_rank=2", "train.steps=2", "train.save_every=1", "train.log_every=1",
        *overrides,
    ]  # fmt: skip
    return ["--config=configs/tiny.py", f"--workdir={workdir}", *(f"--config.{value}" for value in values)]


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory, quick_compilation):
    _, base, data = bases
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(train.main, flags(base, data, folder), name="train") == 0
    return folder


def test_frozen_weights_are_those_of_the_base_and_trained_ones_moved(bases, run):
    want, base, _ = bases
    loaded = loading.load_model(run)
    assert loaded.missing == ("feedback",)  # it is not among what was trained
    assert loaded.config.model.llama.width == 16 and loaded.config.model.llama.lora_rank == 2
    got = flatten_dict(loaded.params, sep="/")
    for path in ("llama/layers/up_proj/kernel", "clip/position_embed", "sam_encoder/window_blocks/linear1/kernel"):
        np.testing.assert_array_equal(got[path], want[path])
    assert np.abs(np.asarray(got["llama/layers/q_proj/lora_b"])).max() > 0
    moved = np.abs(np.asarray(got["llama/embed"])[:1024] - want["llama/embed"][:1024]).max()
    assert 0 < moved < 0.01  # two steps of Adam at 1e-3


def test_a_checkpoint_of_the_run_holds_what_is_trained_alone(run):
    opened = loading.open_parameters(run)
    written = ocp.checkpointables_metadata(checkpoint.checkpoint_folder(run)).metadata["state"]["params"]
    every = flatten_dict(loading.load_model(run).params, sep="/")
    trained = {path for path in every if re.search(opened.config.trainable, path)}
    assert set(flatten_dict(written, sep="/")) == trained and len(trained) < len(every) / 4


def test_moved_base_and_other_base(bases, run, tmp_path):
    _, base, data = bases
    shutil.copytree(base, tmp_path / "moved")
    assert loading.load_model(run, base=tmp_path / "moved").step == 2
    shutil.copytree(run, tmp_path / "run")
    arguments = flags(tmp_path / "moved", data, tmp_path / "run", "train.steps=3")
    assert cli.run(train.main, arguments, name="train") == 0  # the same weights in another place: the run goes on
    assert checkpoint.latest_step(tmp_path / "run") == 3
    about = tmp_path / "moved" / "base.json"
    about.write_text(about.read_text().replace('"new_token_rows": 0', '"new_token_rows": 1'))
    with pytest.raises(UserError, match="holds other base weights than this run started from"):
        loading.load_model(run, base=tmp_path / "moved")
    with pytest.raises(UserError, match="holds no base weights"):
        loading.load_model(run, base=tmp_path / "gone")


def test_adapters_of_a_run_are_exported(run, tmp_path):
    export(run, "peft", tmp_path / "adapter")
    found = read_folder(tmp_path / "adapter")
    got = flatten_dict(loading.load_model(run).params, sep="/")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    np.testing.assert_array_equal(found[name].read(), np.asarray(got["llama/layers/v_proj/lora_b"])[1].T)


def test_sharded_base_equals_the_base(bases):
    """On a mesh every parameter is read with its own sharding; the values are those of one device."""
    from plum_jax.models import plum
    from plum_jax.sharding import make_mesh, tree_sharding

    want, base, _ = bases
    config = initial.resolve_config("tiny", [f"base={base}", "model.llama.lora_rank=2", f"trainable={TRAINABLE}"])
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shardings = tree_sharding(plum.build(plum.PlumConfig.from_dict(config.model))[1], mesh)
    params = flatten_dict(initial.load_initial(config, shardings), sep="/")
    kernel = params["llama/layers/up_proj/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 12)
    for path in ("llama/layers/up_proj/kernel", "llama/embed", "mask_decoder/hypernetworks/linear3/kernel"):
        np.testing.assert_array_equal(jax.device_get(params[path]), want[path])


def test_sizes_that_are_not_those_of_the_base_are_refused(bases, tmp_path, capsys):
    _, base, data = bases
    assert cli.run(train.main, flags(base, data, tmp_path / "run", "model.llama.mlp=32"), name="train") == 2
    assert "has shape (2, 24, 16), the config wants (2, 32, 16)" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture
def int8_config(tmp_path):
    """--config of a user who wants int8 base weights."""
    file = tmp_path / "int8.py"
    file.write_text(
        "from configs.tiny import get_config as tiny\n\n\ndef get_config(arg=''):\n"
        "    config = tiny(arg)\n    config.model.llama.int8 = True\n    return config\n"
    )
    return f"--config={file}"


def test_adapters_train_on_base_weights_in_int8(bases, int8_config, tmp_path, quick_compilation):
    want, base, data = bases
    arguments = [int8_config, *flags(base, data, tmp_path / "run")[1:], r"--config.trainable=lora_|^span_(tagger|projector)/"]
    assert cli.run(train.main, arguments, name="train") == 0
    loaded = loading.load_model(tmp_path / "run")
    got = flatten_dict(loaded.params, sep="/")
    for path in ("llama/layers/up_proj/kernel", "llama/lm_head/kernel", "llama/embed"):
        values, scale = np.asarray(got[path]), np.asarray(got[f"{path}_scale"])
        step = scale[..., None] if path == "llama/embed" else scale[..., None, :]
        assert values.dtype == np.int8 and scale.dtype == np.float32
        assert (np.abs(values * step - np.asarray(want[path], np.float32)) <= 0.501 * step).all(), path
    assert np.abs(np.asarray(got["llama/layers/q_proj/lora_b"])).max() > 0


def test_int8_weights_that_would_be_trained_are_refused(bases, int8_config, tmp_path, capsys):
    _, base, data = bases
    assert cli.run(train.main, [int8_config, *flags(base, data, tmp_path / "run")[1:]], name="train") == 2
    assert "matches llama/embed, which is int8 and has no gradient" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("model.feedback=false",), ("model.grounding=seg_token",)])
def test_a_base_starts_a_model_that_leaves_out_a_part_of_it(tmp_path, quick_compilation, overrides):
    """Its other outputs are still compared with those that were stored."""
    _, paths = fixtures.write_sources(tmp_path, fixtures.plum_config())
    convert(fixtures.arguments(tmp_path / "base", plum=paths["plum"], clip=paths["clip"]))
    write_folder(tmp_path / "data", images=4)
    resolved = initial.resolve_config("tiny", [f"base={tmp_path / 'base'}", *overrides, "model.llama.lora_rank=2"])
    model = loading.initial_model(resolved)
    assert model.missing == ()
    base = initial.open_base_of(resolved)
    initial.check_loaded(base, model.params)
    broken = {
        **model.params,
        "projector": {"kernel": model.params["projector"]["kernel"] + 1, "bias": model.params["projector"]["bias"]},
    }
    with pytest.raises(UserError, match="do not give the outputs"):
        initial.check_loaded(base, broken)
