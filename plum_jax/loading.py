"""A model from what is on disk: a run folder, base weights of `plum convert`, or the cached model `tiny`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from plum_jax import base as base_weights
from plum_jax import initial, seal
from plum_jax.checkpoint import checkpoint_folder, read_config, steps_in
from plum_jax.config_io import config_from_json
from plum_jax.errors import UserError
from plum_jax.models import plum
from plum_jax.params import merge, partition
from plum_jax.run_record import sha256_of


class LoadedModel(NamedTuple):
    """A trained (or, at step 0, untrained) model."""

    config: Any  # ml_collections.ConfigDict
    params: dict  # all parameters; trained ones float32, frozen ones as they are stored
    tokenizer: Any  # of transformers
    path: str  # the checkpoint folder or that of the base weights, '' for an untrained model
    sha256: str  # of the checkpoint folder, '' for an untrained model
    step: int
    missing: tuple = ()  # parts such as "span_tagger" that neither base weights nor training gave: random


def initial_model(config):
    """LoadedModel of untrained parameters: what training starts from."""
    return LoadedModel(config, _initial(config), initial.tokenizer_of(config), "", "", 0, tuple(initial.random_parts(config)))


def load_model(path, *, base=None, which="last"):
    """Loads a checkpoint of a run folder, one checkpoint folder of it, base weights, or the cached model `tiny`.

    Args:
      path: folder or word. base: where the base weights of a run are now, when they have moved since.
      which: "last" or "best" of a run folder (`checkpoint_folder`).

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
    folder, config, written = _open_run(path, base, which)
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


def _open_run(path, base, which="last"):
    """-> (checkpoint folder, its config, {path: shape} of what the disk holds)."""
    folder = checkpoint_folder(path, which)
    try:
        config = config_from_json(read_config(folder)[0])
        written = flatten_dict(ocp.checkpointables_metadata(folder).metadata["state"]["params"], sep="/")
    except Exception as error:  # whatever Orbax, TensorStore or JSON raise for damaged files; --debug shows it
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
        sealed = read_config(folder)[1]
        if sealed:
            seal.check_arrays(sealed, dict(params=params))
    except Exception as error:  # whatever Orbax, TensorStore or JSON raise for damaged files; --debug shows it
        raise _damaged(folder) from error
    # Checkpoints from before there were seals: damage that leaves finite numbers is not found in them.
    if not all(jax.tree.leaves(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params))):
        raise _damaged(folder)
    return params, frozen


def _other_steps(folder):
    others = [step for step in steps_in(folder.parent) if step != int(folder.name)]
    return f"try {folder.parent / str(others[-1])}" if others else "train again"
