"""Saving and restoring a state: other meshes, damaged files, other configs, and loading a model."""

import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plum_jax import checkpoint, loading
from plum_jax.config_io import load_config
from plum_jax.errors import UserError
from plum_jax.optim import make_optimizer
from plum_jax.sharding import make_mesh, tree_sharding
from plum_jax.train_step import TrainState, init_state

SMALL = [
    "model.llama.width=24", "model.llama.mlp=32", "model.clip.width=24", "model.clip.mlp=32", "model.clip.depth=1",
    "model.clip.image_size=48", "model.sam.width=24", "model.sam.mlp=32", "model.sam.depth=2", "model.sam.global_blocks=(1,)",
    "model.sam.out_width=16", "model.sam.image_size=32", "model.sam.window=3", "model.decoder.mlp=16", "model.decoder.depth=1",
    "model.tagger.mlp=32", "train.save_every=2",
]  # fmt: skip


def make_state(config, mesh, scale=1.0):
    params = {
        "llama": {"embed": scale * jnp.arange(32.0).reshape(8, 4), "layers": {"q_proj": {"kernel": jnp.ones((2, 4, 4))}}},
        "half": jnp.linspace(0, 1, 5).astype(jnp.bfloat16),
    }
    tx, _ = make_optimizer(config.optim, config.train.steps)
    state = init_state(params, tx)
    updates, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), state.opt_state, params)
    state = TrainState(state.step + 1, optax.apply_updates(params, updates), opt_state)
    shardings = tree_sharding(jax.eval_shape(lambda: state), mesh)
    return jax.device_put(state, shardings), shardings


def save_all(workdir, config, steps, mesh):
    with checkpoint.open_checkpoints(workdir, config) as checkpointer:
        for step in steps:
            state, shardings = make_state(config, mesh, scale=step)
            checkpoint.save(checkpointer, step, state, config, force=True)
    return shardings


def restore(workdir, config, mesh):
    state, shardings = make_state(config, mesh)
    with checkpoint.open_checkpoints(workdir, config) as checkpointer:
        return checkpoint.restore(checkpointer, jax.eval_shape(lambda: state), shardings, config)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture
def config():
    return load_config("tiny", SMALL)


MESHES = [dict(data=8, fsdp=1, tensor=1), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8, tensor=1)]


def mesh_of(data, fsdp, tensor):
    return make_mesh(dict(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


@pytest.mark.parametrize(
    "wrote, reads",
    [((2, 2, 2), (8, 1, 1)), ((8, 1, 1), (2, 2, 2)), ((2, 2, 2), (1, 8, 1)), ((8, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 2, 4))],
    ids=str,
)
def test_any_mesh_restores_what_another_wrote(config, tmp_path, wrote, reads):
    save_all(tmp_path, config, [3], mesh_of(*wrote))
    mesh = mesh_of(*reads)
    restored, step = restore(tmp_path, config, mesh)
    want, shardings = make_state(config, mesh, scale=3)
    assert step == 3
    equal(TrainState(**restored), want)
    embed = restored["params"]["llama"]["embed"]
    assert embed.sharding.is_equivalent_to(shardings.params["llama"]["embed"], embed.ndim)
    assert restored["params"]["half"].dtype == jnp.bfloat16


def test_keeps_the_last_and_skips_what_the_policy_does_not_want(config, tmp_path):
    mesh = make_mesh(MESHES[0])
    state, _ = make_state(config, mesh)
    with checkpoint.open_checkpoints(tmp_path, config) as checkpointer:
        saved = [checkpoint.save(checkpointer, step, state, config) for step in range(1, 7)]
        assert not checkpoint.save(checkpointer, 6, state, config, force=True)  # is there already
    assert saved == [False, True] * 3
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]


def test_the_best_stays_besides_the_last(config, tmp_path):
    mesh = make_mesh(MESHES[0])
    for step in (2, 4, 6, 8):
        save_all(tmp_path, config, [step], mesh)
        checkpoint.choose_best(tmp_path, {2: 0.1, 4: 0.9, 6: 0.2}, "gmiou_macro", "max")
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [4, 6, 8]


def test_a_save_does_not_wait_for_the_disk_and_its_buffers_may_be_donated(config, tmp_path):
    mesh = make_mesh(MESHES[1])
    state, shardings = make_state(config, mesh, scale=3)
    want = jax.device_get(state)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0, out_shardings=shardings)
    with checkpoint.open_checkpoints(tmp_path, config) as checkpoints:
        assert checkpoint.save(checkpoints, 2, state, config, force=True)
        assert checkpoint.steps_in(tmp_path / "checkpoints") == []  # it is being written
        jax.block_until_ready(double(state))
    equal(TrainState(**restore(tmp_path, config, mesh)[0]), want)


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_one(config, tmp_path, monkeypatch):
    mesh = make_mesh(MESHES[0])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda path, ignore_errors: (path / "state" / "_METADATA").unlink())
        save_all(tmp_path, config, [2, 4, 6], mesh)
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [4, 6]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert restore(tmp_path, config, mesh)[1] == 6
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(config, tmp_path):
    """A limit on the size of files fails in the same calls as a full disk."""
    mesh, limits = make_mesh(MESHES[0]), resource.getrlimit(resource.RLIMIT_FSIZE)
    save_all(tmp_path, config, [2, 4], mesh)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(UserError, match="written: File too large .step 4 and all before are as they were.; free"):
            save_all(tmp_path, config, [6], mesh)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    save_all(tmp_path, config, [6], mesh)
    assert restore(tmp_path, config, mesh)[1] == 6


def test_nothing_to_restore(config, tmp_path):
    assert restore(tmp_path, config, make_mesh(MESHES[0])) == (None, 0)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()], ids=["cut", "flip", "delete"])
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(config, tmp_path, damage, capsys):
    mesh = make_mesh(MESHES[0])
    save_all(tmp_path, config, [2, 4], mesh)
    damage(biggest(tmp_path / "checkpoints" / "4" / "state"))
    restored, step = restore(tmp_path, config, mesh)
    assert step == 2
    equal(TrainState(**restored), make_state(config, mesh, scale=2)[0])
    assert "warning: checkpoint 4 cannot be read" in capsys.readouterr().err
    assert (tmp_path / "corrupt" / "4").is_dir()  # nothing is deleted
    save_all(tmp_path, config, [4], mesh)  # and the step can be saved again
    assert restore(tmp_path, config, mesh)[1] == 4


def test_damage_of_any_file_is_a_warned_fall_back_or_harmless(config, tmp_path, capsys):
    """Every file in turn: a flipped bit, cut short, gone. Never other numbers, and never a message but the warning."""
    mesh, rng = make_mesh(MESHES[1]), np.random.default_rng(0)
    save_all(tmp_path / "whole", config, [2, 4], mesh)
    want = {step: jax.device_get(make_state(config, mesh, scale=step)[0]) for step in (2, 4)}
    newest, outcomes = tmp_path / "whole" / "checkpoints" / "4", []

    def flip_a_bit(path):
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(content))

    def cut_short(path):
        path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])

    for file in sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file()):
        for damage in (flip_a_bit, cut_short, lambda path: path.unlink()):
            folder = tmp_path / "copy"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", folder)
            damage(folder / "checkpoints" / "4" / file)
            restored, step = restore(folder, config, mesh)
            equal(TrainState(**restored), want[step])
            said = capsys.readouterr().err
            assert said.count("warning: checkpoint 4 cannot be read") == said.count("\n") == (step == 2), (file, damage, said)
            outcomes.append(step)
    assert {2, 4} == set(outcomes)


def test_a_digest_finds_what_the_files_do_not_tell(config, tmp_path, monkeypatch, capsys):
    """Arrays that were read without an error, but are others: an error of the disk or of the memory on the way."""
    mesh = make_mesh(MESHES[1])
    save_all(tmp_path, config, [2, 4], mesh)
    load = checkpoint.ocp.load_checkpointables

    def wrong_once(path, items):
        found = load(path, items)
        if "state" in items and str(path).endswith("4"):
            found["state"]["params"]["half"] = found["state"]["params"]["half"].at[3].add(1)
        return found

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", wrong_once)
    assert restore(tmp_path, config, mesh)[1] == 2
    assert "params/half is not what was saved" in capsys.readouterr().err


def test_checkpoints_from_before_there_were_seals_are_read(config, tmp_path):
    mesh = make_mesh(MESHES[1])
    save_all(tmp_path, config, [2], mesh)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "seal")
    assert restore(tmp_path, config, mesh)[1] == 2 and checkpoint.read_window(tmp_path, 2) == {}


def test_all_checkpoints_damaged(config, tmp_path):
    mesh = make_mesh(MESHES[0])
    save_all(tmp_path, config, [2, 4], mesh)
    for step in ("2", "4"):
        cut(biggest(tmp_path / "checkpoints" / step / "config"))
    with pytest.raises(UserError, match="none of 2 checkpoints can be read"):
        restore(tmp_path, config, mesh)


def test_what_a_kill_left_behind_is_removed(config, tmp_path):
    mesh = make_mesh(MESHES[0])
    save_all(tmp_path, config, [2], mesh)
    left = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert restore(tmp_path, config, mesh)[1] == 2
    assert not left.exists()


def test_a_checkpoint_of_another_config_names_the_keys(config, tmp_path):
    mesh = make_mesh(MESHES[0])
    save_all(tmp_path, config, [2], mesh)
    other = load_config("tiny", [*SMALL, "optim.lr=0.5", "seed=3", "train.steps=9"])
    with pytest.raises(UserError, match=r"another config \(optim.lr, seed differ\)"):
        restore(tmp_path, other, mesh)
    assert not (tmp_path / "corrupt").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, config, initial parameters) of a small model whose language model alone is trainable."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = load_config("tiny", [*SMALL, "trainable=llama"])
    params = loading.initial_model(config).params
    state = init_state({"llama": jax.tree.map(lambda x: x + 1, params["llama"])}, make_optimizer(config.optim, 10)[0])
    checkpoint.write_config(folder, config)
    with checkpoint.open_checkpoints(folder, config) as checkpointer:
        checkpoint.save(checkpointer, 2, state, config, force=True)
        checkpoint.save(checkpointer, 4, state, config, force=True)
    return folder, config, params


@pytest.fixture
def run_folder(trained, tmp_path, monkeypatch):
    """The same with a copy of the folder, to damage; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run", *trained[1:]


def test_load_model_joins_trained_and_frozen_parameters(run_folder):
    folder, config, params = run_folder
    loaded = loading.load_model(folder)
    assert loaded.step == 4 and loaded.config == config and len(loaded.sha256) == 64
    assert len(loaded.tokenizer) == config.model.llama.vocab_size
    equal(loaded.params, {**params, "llama": jax.tree.map(lambda x: x + 1, params["llama"])})
    assert loading.load_model(folder / "checkpoints" / "2").step == 2
    assert loading.load_model(folder.rename(folder.with_name("7"))).step == 4  # a number as the name of a run


def test_the_word_tiny_is_the_installed_run(run_folder):
    with pytest.raises(UserError, match="run `plum quickstart` once"):
        loading.load_model("tiny")
    checkpoint.install_tiny(run_folder[0])
    folder = checkpoint.install_tiny(run_folder[0])  # a second time replaces the first
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]
    loaded = loading.load_model("tiny")
    assert loaded.step == 4 and loaded.sha256 == loading.load_model(run_folder[0]).sha256


def test_folders_that_hold_no_model(run_folder, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        loading.load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        loading.load_model(tmp_path / "empty")


def test_damaged_model_names_the_step_before(run_folder):
    folder = run_folder[0] / "checkpoints" / "4"
    cut(biggest(folder / "state"))
    with pytest.raises(UserError, match="cannot be read.*try .*checkpoints/2"):
        loading.load_model(run_folder[0])


@pytest.mark.parametrize("name", ["state", "config", "state/_METADATA"])
def test_a_model_without_a_part_says_so_in_plain_words(run_folder, name):
    part = run_folder[0] / "checkpoints" / "4" / name
    shutil.rmtree(part) if part.is_dir() else part.write_bytes(bytes(2000))
    with pytest.raises(UserError, match="checkpoints/4: .*missing or damaged; try .*checkpoints/2") as caught:
        loading.load_model(run_folder[0] / "checkpoints" / "4")
    assert "Error" not in str(caught.value)


def test_parameters_that_are_not_finite_are_refused(run_folder):
    folder, config, params = run_folder
    state = init_state({"llama": jax.tree.map(lambda x: x * jnp.nan, params["llama"])}, make_optimizer(config.optim, 10)[0])
    with checkpoint.open_checkpoints(folder, config) as checkpointer:
        checkpoint.save(checkpointer, 6, state, config, force=True)
    with pytest.raises(UserError, match="missing or damaged"):
        loading.load_model(folder)


def test_parameters_of_another_model_are_refused(run_folder):
    folder, config, params = run_folder
    state = init_state({"llama": params["llama"]}, make_optimizer(config.optim, 10)[0])
    wider = load_config("tiny", [*SMALL, "trainable=llama", "model.llama.mlp=40"])
    with checkpoint.open_checkpoints(folder, config) as checkpointer:
        checkpoint.save(checkpointer, 6, state, wider, force=True)
    with pytest.raises(UserError, match="3 parameters do not fit the config"):
        loading.load_model(folder)
