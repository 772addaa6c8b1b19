"""Base weights: the folder that `plum convert` writes and that training, evaluation and prediction start from.

config.json   a whole config; its model part describes the weights, so that no command needs them said again
base.json     where the weights are from, what is missing, shape and storage type of every parameter
params/       Orbax; a stacked parameter is stored layer by layer, so that writing and reading it needs little memory
tokenizer/    as it came with the source
check.npz     what a few inputs gave when the folder was written (selfcheck.py)
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from plum_jax.config_io import config_from_json, config_json
from plum_jax.errors import UserError
from plum_jax.paths import absolute, as_path
from plum_jax.run_record import sha256_of, write_json, write_text

BUFFER_BYTES = 256 << 20  # written together: fewer, larger files; several times this is held while Orbax writes
GROUP_BYTES = 1 << 30  # read and stacked together
FORMAT = 1
PARTS = {  # what may be absent from a source, and what it is called
    "span_tagger": "span tagger", "span_projector": "span projector", "feedback": "mask feedback",
    "projector": "image projector",
}  # fmt: skip


class Base(NamedTuple):
    folder: Path
    config: Any  # ml_collections.ConfigDict
    about: dict  # base.json

    @property
    def sha256(self):
        """Of base.json, which holds the hashes of all sources: a name for these weights that costs nothing to compute."""
        return sha256_of(self.folder / "base.json")

    @property
    def missing(self):
        """Parts that no source had, such as "span_tagger": they start random."""
        return list(self.about["missing"])


def is_base(folder):
    """Whether a folder holds base weights."""
    return (as_path(folder) / "base.json").is_file()


def open_base(folder):
    """Folder -> Base; no parameter is read. UserError when the folder is not what `plum convert` writes."""
    folder = absolute(folder)
    if not is_base(folder):
        raise UserError(f"{folder}: holds no base weights (no base.json); write one with plum convert --out {folder}")
    try:
        about = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        config = config_from_json((folder / "config.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(f"{folder}: has format {about['format']}, this version reads {FORMAT}; convert again")
        base = Base(folder, config, about)
        _check_tokenizer(base)
        return base
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}: base.json or config.json is missing or damaged ({error}); convert again") from error


def _check_tokenizer(base):
    """UserError unless the tokenizer is the one that came with the weights: another one would give other ids silently."""
    for name, sha256 in base.about["tokenizer"].items():
        path = base.folder / "tokenizer" / name
        if not path.is_file() or sha256_of(path) != sha256:
            raise UserError(f"{path}: is missing, or not the file that came with the weights; put it back or convert again")


class BaseWriter:
    """Writes base weights into an empty folder, piece by piece."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.parameters, self.buffer, self.held = {}, {}, 0

    def add(self, path, array, layer=None, layers=None):
        """One parameter, or layer number `layer` of one that has `layers` layers, as a NumPy array."""
        key, shape = path, array.shape
        if layer is not None:
            key, shape = f"{path}/{_digits(layer)}", (layers, *array.shape)
        self.parameters[path] = {"shape": list(shape), "dtype": str(array.dtype), "stacked": layer is not None}
        self.buffer[key] = np.ascontiguousarray(array)
        self.held += array.nbytes
        if self.held >= BUFFER_BYTES:
            self.flush()

    def flush(self):
        if self.buffer:
            ocp.partial.save(self.folder / "params", unflatten_dict(self.buffer, sep="/"))
        self.buffer, self.held = {}, 0

    def commit(self):
        """All parameters are there: they can be read from the folder now, through `read_slices`."""
        self.flush()
        ocp.partial.finalize(self.folder / "params")

    def finish(self, config, about):
        """Writes what describes the parameters."""
        write_text(self.folder / "config.json", config_json(config))
        write_json(self.folder / "base.json", {"format": FORMAT, **about, "parameters": self.parameters})


def _digits(layer):
    return f"{layer:03d}"


def read_slices(params, parameters, keys, dtype=None):
    """Single parameters or layers as NumPy arrays.

    Args:
      params: folder of the Orbax checkpoint. parameters: {path: {"shape", "dtype", "stacked"}}.
      keys: [(path, layer or None)]. A stacked parameter needs the number of a layer.
      dtype: of the result; None for that of the file.

    Returns:
      {(path, layer): array}.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {}
    for path, layer in keys:
        shape = parameters[path]["shape"]
        shape, name = (shape, path) if layer is None else (shape[1:], f"{path}/{_digits(layer)}")
        wanted[name] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(parameters[path]["dtype"]), sharding=device)
    found = _load(params, wanted)
    names = [path if layer is None else f"{path}/{_digits(layer)}" for path, layer in keys]
    arrays = (np.asarray(found[name]) for name in names)
    return {key: array if dtype is None else array.astype(dtype) for key, array in zip(keys, arrays, strict=True)}


def _load(params, wanted):
    """{name: ShapeDtypeStruct with sharding} -> {name: jax.Array}."""
    from flax.traverse_util import flatten_dict

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return flatten_dict(ocp.load(params, unflatten_dict(wanted, sep="/")), sep="/")
    except Exception as error:  # whatever Orbax, TensorStore or JSON raise for damaged files
        raise UserError(f"{params}: files are missing or damaged ({type(error).__name__}); convert again") from error


def load_parameters(base, wanted):
    """Parameters of a base on their devices, each read with its own sharding: no host holds what it does not keep.

    Args:
      base: Base. wanted: {path: ShapeDtypeStruct with sharding}; the dtype may differ from the stored one.

    Returns:
      {path: jax.Array}.

    Raises:
      UserError: a shape is not that of the file; damaged files.
    """
    found, group, size = {}, {}, 0
    for path, x in wanted.items():
        stored = base.about["parameters"][path]
        if tuple(stored["shape"]) != x.shape:
            raise UserError(
                f"{base.folder}: {path} has shape {tuple(stored['shape'])}, the config wants {x.shape}; its sizes must be "
                "those of the base, leave them out of the config"
            )
        group[path], size = x, size + x.size * jnp.dtype(stored["dtype"]).itemsize
        if size >= GROUP_BYTES:
            found.update(_load_group(base, group))
            group, size = {}, 0
    return found | _load_group(base, group)


def _load_group(base, wanted):
    """Reads stacked parameters layer by layer and stacks them on the devices: for a moment the group is there twice."""
    slices, layers = {}, {}
    for path, x in wanted.items():
        stored = base.about["parameters"][path]
        names = [f"{path}/{_digits(i)}" for i in range(x.shape[0])] if stored["stacked"] else [path]
        shape, sharding = (x.shape[1:], _layer_sharding(x.sharding)) if stored["stacked"] else (x.shape, x.sharding)
        slices.update({n: jax.ShapeDtypeStruct(shape, jnp.dtype(stored["dtype"]), sharding=sharding) for n in names})
        layers[path] = names
    if not slices:
        return {}
    read = _load(base.folder / "params", slices)
    stacked = {path for path in wanted if base.about["parameters"][path]["stacked"]}

    def stack(parts):
        return {p: (jnp.stack(x) if p in stacked else x[0]).astype(wanted[p].dtype) for p, x in parts.items()}

    places = {path: x.sharding for path, x in wanted.items()}
    return jax.jit(stack, out_shardings=places)({path: [read[name] for name in names] for path, names in layers.items()})


def _layer_sharding(sharding):
    """Sharding of a stacked parameter -> of one layer of it."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, P(*sharding.spec[1:]))
