"""Save and restore a run (Orbax v1), and load a model from a run folder or from base weights.

Run folder: config.json and checkpoints/<step>/ with the trainable parameters, the optimizer state, the step and the config.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from plum_jax import base as base_weights
from plum_jax import initial
from plum_jax.cache import cache_dir
from plum_jax.config_io import config_from_json, config_json, differences
from plum_jax.errors import UserError
from plum_jax.models import plum
from plum_jax.params import merge, partition
from plum_jax.run_record import sha256_of, write_text

logging.set_verbosity(logging.ERROR)  # Orbax warns of what is handled here: slow saves, items that were not asked for


class LoadedModel(NamedTuple):
    """A trained (or, at step 0, untrained) model."""

    config: Any  # ml_collections.ConfigDict
    params: dict  # all parameters; trained ones float32, frozen ones as they are stored
    tokenizer: Any  # of transformers
    path: str  # the checkpoint folder or that of the base weights, '' for an untrained model
    sha256: str  # of the checkpoint folder, '' for an untrained model
    step: int
    missing: tuple = ()  # parts such as "span_tagger" that neither base weights nor training gave: random


def open_checkpoints(workdir, config):
    """Checkpointer of a run folder: keeps the last `config.train.keep`, saves every `config.train.save_every` steps."""
    policy, keep = ocp.training.save_decision_policies, ocp.training.preservation_policies
    return ocp.training.Checkpointer(
        Path(workdir).absolute() / "checkpoints",
        save_decision_policy=policy.FixedIntervalPolicy(config.train.save_every),
        preservation_policy=keep.LatestN(config.train.keep),
        cleanup_tmp_directories=True,  # what a kill in the middle of a save left behind
    )


def save(checkpointer, step, state, config, *, force=False):
    """Asynchronous; skips the steps that the save policy does not want, and a step that is already there.

    Args:
      step: Python int, number of updates made: no wait for the device.
      state: TrainState.

    Returns:
      True when a save was started.
    """
    if any(found.step == step for found in checkpointer.checkpoints):
        return False
    items = dict(state=_as_dict(state), config=config_json(config))  # as text: a dictionary would be stored as arrays
    return checkpointer.save_checkpointables_async(step, items, force=force) is not None


def restore(checkpointer, state, shardings, config):
    """The newest readable state, laid out for this mesh whatever mesh wrote it.

    A checkpoint that cannot be read is set aside in `corrupt/` with a warning, and the one before it is taken.

    Args:
      state: TrainState of shapes. shardings: the same tree of shardings.
      config: of this run; the checkpoint must have been made with the same one (`config_io.RESUMABLE` keys may differ).

    Returns:
      (dictionary with step, params and opt_state; step as a Python int), or (None, 0) when there is no checkpoint.

    Raises:
      UserError: the checkpoint is of another config; no checkpoint could be read.
    """
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), _as_dict(state), _as_dict(shardings))
    found = list(reversed(checkpointer.checkpoints))
    for checkpoint in found:
        try:
            written = checkpointer.load_checkpointables(checkpoint, dict(config=None))["config"]
            _check_config(checkpoint.path, config_from_json(written), config)
            return checkpointer.load_checkpointables(checkpoint, dict(state=target))["state"], checkpoint.step
        except UserError:
            raise
        except Exception as error:  # whatever Orbax, TensorStore or JSON raise for damaged files
            aside = _set_aside(Path(checkpoint.path))
            what = f"{_short(error)}; its files are missing or damaged"
            print(f"warning: checkpoint {checkpoint.step} cannot be read ({what}); moved to {aside}", file=sys.stderr)
    checkpointer.reload()
    if found:
        raise UserError(f"{checkpointer.directory}: none of {len(found)} checkpoints can be read; choose a new --workdir")
    return None, 0


def _check_config(path, written, config):
    keys = differences(written, config)
    if keys:
        raise UserError(f"{path}: was written with another config ({', '.join(keys[:8])} differ); use a new --workdir")


def _set_aside(path):
    """checkpoints/<step> -> corrupt/<step>: nothing is deleted, and the step can be saved again."""
    aside = path.parent.parent / "corrupt" / path.name
    if jax.process_index() == 0:
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("set_aside")
    return aside


def _as_dict(state):
    return dict(step=state.step, params=state.params, opt_state=state.opt_state)


def _short(error):
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"


def initial_model(config):
    """LoadedModel of untrained parameters: what training starts from."""
    return LoadedModel(config, _initial(config), initial.tokenizer_of(config), "", "", 0, tuple(initial.random_parts(config)))


def load_model(path, *, base=None):
    """Loads the latest checkpoint of a run folder, one checkpoint folder of it, base weights, or the cached model `tiny`.

    Args:
      path: folder or word. base: where the base weights of a run are now, when they have moved since.

    Returns:
      LoadedModel; its parameters lie on the default device, whatever mesh wrote them.

    Raises:
      UserError: no such folder, no finished checkpoint in it, damaged files, parameters that do not fit the config.
    """
    if base_weights.is_base(path):
        weights = _open_base(path)
        config, params = weights.config, _initial(weights.config)
        initial.check_loaded(weights, params)
        tokenizer = initial.tokenizer_of(config)
        return LoadedModel(config, params, tokenizer, str(weights.folder), weights.sha256, 0, tuple(weights.missing))
    folder, config, written = _open_run(path, base)
    params, frozen = _load_trained(folder, config, written)
    params = merge(params, _initial(config, flatten_dict(frozen, sep="/"))) if frozen else params
    missing, tokenizer = _never_trained(config, written), initial.tokenizer_of(config)
    return LoadedModel(config, params, tokenizer, str(folder), sha256_of(folder), int(folder.name), missing)


class Parameters(NamedTuple):
    """A checkpoint whose parameters are read one at a time."""

    config: Any
    take: Any  # (path, number of the layer or None for an unstacked one) -> NumPy array as it is stored
    tokenizer: Any
    missing: tuple
    base: str  # folder of the base weights, '' without


def open_parameters(path, *, base=None):
    """Like `load_model`, for programs that read one parameter after the other: what lies in base weights is not loaded."""
    if base_weights.is_base(path):
        weights, trained = _open_base(path), {}
        config, missing = weights.config, tuple(weights.missing)
    else:
        folder, config, written = _open_run(path, base)
        weights, missing = initial.open_base_of(config), _never_trained(config, written)
        params, frozen = _load_trained(folder, config, written)
        stored = weights.about["parameters"] if weights else {}
        rest = [name for name in flatten_dict(frozen, sep="/") if name not in stored]
        trained = flatten_dict(merge(params, _initial(config, rest)) if rest else params, sep="/")

    def take(name, layer):
        if name in trained:
            return np.asarray(trained[name] if layer is None else trained[name][layer])
        key = (name, layer)
        return base_weights.read_slices(weights.folder / "params", weights.about["parameters"], [key])[key]

    return Parameters(config, take, initial.tokenizer_of(config), missing, str(weights.folder) if weights else "")


def _open_base(path):
    base = base_weights.open_base(path)
    base.config.base, base.config.trainable = str(base.folder), "$^"  # nothing: all parameters keep their stored type
    return base


def _open_run(path, base):
    """-> (checkpoint folder, its config, {path: shape} of what the disk holds)."""
    folder = checkpoint_folder(path)
    try:
        config = config_from_json(ocp.load_checkpointables(folder, dict(config=None))["config"])
        written = flatten_dict(ocp.checkpointables_metadata(folder).metadata["state"]["params"], sep="/")
    except Exception as error:
        raise _damaged(folder) from error
    if base is not None:
        config.base = str(base)
    return folder, config, {name: tuple(x.shape) for name, x in written.items()}


def _never_trained(config, written):
    trained = {name.partition("/")[0] for name in written}
    return tuple(part for part in initial.random_parts(config) if part not in trained)


def _initial(config, paths=None):
    """Parameters at step 0 on the default device."""
    _, abstract = plum.build(plum.PlumConfig.from_dict(config.model))
    return initial.load_initial(config, jax.tree.map(lambda _: _device(), abstract), paths=paths)


def _device():
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _damaged(folder):
    return UserError(f"{folder}: the checkpoint cannot be read, its files are missing or damaged; {_other_steps(folder)}")


def _load_trained(folder, config, written):
    """-> (trainable parameters from disk, shapes of the frozen ones); `written` is {path: shape} of what the disk holds."""
    _, abstract = plum.build(plum.PlumConfig.from_dict(config.model))
    trainable, frozen = partition(abstract, config.trainable)
    wanted = {name: tuple(x.shape) for name, x in flatten_dict(trainable, sep="/").items()}
    wrong = sorted(name for name in wanted.keys() | written.keys() if wanted.get(name) != written.get(name))
    if wrong:
        detail = f"{wrong[0]} is {written.get(wrong[0], 'missing')}, the model wants {wanted.get(wrong[0], 'none')}"
        raise UserError(
            f"{folder}: {len(wrong)} parameters do not fit the config ({detail}); it is of another version or config"
        )
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_device()), trainable)
    context = ocp.Context()
    context.pytree.loading.partial_load = True  # without the optimizer state
    try:
        with context:
            params = ocp.load_checkpointables(folder, dict(state=dict(params=target)))["state"]["params"]
    except Exception as error:
        raise _damaged(folder) from error
    # Orbax keeps checksums of its index, not of the arrays: damage there that leaves finite numbers is not found.
    if not all(jax.tree.leaves(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params))):
        raise _damaged(folder)
    return params, frozen


def checkpoint_folder(path):
    """Run folder, its checkpoints/<step>, or the word `tiny` -> absolute path of checkpoints/<step> of the newest step.

    Raises:
      UserError: there is no finished checkpoint.
    """
    folder = Path(path)
    if str(path) == "tiny" and not folder.exists():
        folder = tiny_folder()
        if not folder.exists():
            raise UserError(f"tiny: no trained tiny model in {folder}; run `plum quickstart` once, or give a run folder")
    if not folder.is_dir():
        raise UserError(f"{path}: no such checkpoint folder; give the --workdir of a training run, or `tiny`")
    folder = folder.absolute()
    if folder.name.isdigit() and ocp.is_orbax_checkpoint(folder):
        return folder
    steps = _steps(folder / "checkpoints")
    if not steps:
        raise UserError(f"{path}: holds no finished checkpoint; train with `plum train --workdir={path}` first")
    return folder / "checkpoints" / str(steps[-1])


def latest_step(workdir):
    """Number of the newest finished checkpoint of a run folder, 0 when there is none; nothing is read or created."""
    return next(reversed(_steps(Path(workdir).absolute() / "checkpoints")), 0)


def _steps(folder):
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit() and ocp.is_orbax_checkpoint(folder / name))


def _other_steps(folder):
    others = [step for step in _steps(folder.parent) if step != int(folder.name)]
    return f"try {folder.parent / str(others[-1])}" if others else "train again"


def tiny_folder():
    """Where the checkpoint word `tiny` lives."""
    return cache_dir() / "tiny"


def install_tiny(workdir):
    """Copies the newest checkpoint of a run into the user's cache as the checkpoint word `tiny`, and returns that folder.

    What evaluation left beside it for prediction (calibration.json) goes along. The old folder is replaced as a whole.
    """
    source, folder = checkpoint_folder(workdir), tiny_folder()
    fresh, old = folder.with_name(f".tiny.{os.getpid()}"), folder.with_name(f".tiny.old.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh / "checkpoints" / source.name)
    for name in ("config.json", "calibration.json"):
        if (Path(workdir) / name).exists():
            shutil.copy2(Path(workdir) / name, fresh / name)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def write_config(workdir, config):
    """Writes W/config.json, the resolved config."""
    write_text(Path(workdir) / "config.json", config_json(config))
