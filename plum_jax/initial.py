"""Where a run starts: parameters from the base weights that its config names, everything else from its seed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from data_pipelines.conversation import SEG
from plum_jax import base as base_weights
from plum_jax import selfcheck
from plum_jax.config_io import apply_override, flatten, load_config
from plum_jax.errors import UserError
from plum_jax.models import plum
from plum_jax.params import INT8_SCALES, partition
from plum_jax.paths import fetched
from plum_jax.quantize import quantize_weight

ADAPTERS = ("llama.lora_rank", "llama.lora_alpha")
OF_THE_RUN = (
    "llama.int8",
    "dtype",
    "logits_dtype",
    "grounding",
    "decoder.pe_dtype",
    "remat",
    "llama.lora_dropout",
    "tagger.dropout",
    *ADAPTERS,
)


def resolve_config(spec, overrides):
    """Config file and overrides -> config. With `base` set, the model's sizes, template and tokenizer are those of the base.

    Overrides come last, so that `--config.base=DIR --config.model.feedback=false` does what it says.
    """
    first = [item for item in overrides if item.startswith("base=")]
    config = load_config(spec, first)
    if config.get("base"):
        adopt(config, base_weights.open_base(config.base))
    for item in overrides:
        if item not in first:
            apply_override(config, item)
    return config


def adopt(config, base):
    """Takes from a base what describes its weights; what a run may choose (OF_THE_RUN) stays as the config has it."""
    model = base.config.model.copy_and_resolve_references()
    mine = flatten(config.model)
    for key in OF_THE_RUN:
        if key in mine and not (model.llama.lora_rank and key in ADAPTERS):
            part, _, name = key.rpartition(".")
            (model[part] if part else model)[name] = mine[key]
    config.model = model
    config.base, config.sha256_of_base = str(base.folder), base.sha256
    config.data.template, config.data.clip_view = base.config.data.template, base.config.data.clip_view


def tokenizer_of(config):
    """The tokenizer that a config names, or that of its base. UserError when there is neither."""
    from data_pipelines.tokenizer import load_tokenizer

    if not config.tokenizer and not config.get("base"):
        raise UserError(
            "config.tokenizer: is empty; give a tokenizer folder, the word tiny, or base weights: --config.base=DIR"
        )
    tokenizer = load_tokenizer(fetched(config.tokenizer or f"{config.base}/tokenizer"))
    if config.model.get("grounding", "span") == "seg_token":
        tokenizer.add_tokens([SEG], special_tokens=True)
    return tokenizer


def open_base_of(config):
    """Base of a config, None without one. UserError when the folder holds other weights than the run started from."""
    if not config.get("base"):
        return None
    base = base_weights.open_base(config.base)
    wanted = config.get("sha256_of_base")
    if wanted and wanted != base.sha256:
        raise UserError(f"{base.folder}: holds other base weights than this run started from; put those back")
    return base


def initial_shapes(config, shardings, *, paths=None):
    """Shapes, types and places of the parameters at step 0: {path: ShapeDtypeStruct}, as `load_initial` makes them.

    Trainable parameters are float32. Frozen ones keep the type in which the base stores them; without a base they have
    that of the activations. With `model.llama.int8` the frozen weights that it names are quantised, whatever their source.
    """
    base = open_base_of(config)
    _, abstract = plum.build(plum.PlumConfig.from_dict(config.model))
    trainable = flatten_dict(partition(abstract, config.trainable)[0], sep="/")
    flat, places = flatten_dict(abstract, sep="/"), flatten_dict(shardings, sep="/")
    wanted = {}
    for path in flat if paths is None else paths:
        dtype = jnp.dtype(jnp.float32 if path in trainable else _frozen_dtype(path, flat[path].dtype, config, base))
        wanted[path] = jax.ShapeDtypeStruct(flat[path].shape, dtype, sharding=places[path])
    return wanted


def load_initial(config, shardings, *, paths=None):
    """Parameters at step 0, of the types of `initial_shapes`.

    Args:
      config: the whole config.
      shardings: nested dictionary of shardings for all parameters.
      paths: only these ("llama/embed", ...); None for all.

    Returns:
      Nested dictionary of jax.Arrays.

    Raises:
      UserError: the base is missing, damaged, or of other sizes.
    """
    base, places = open_base_of(config), flatten_dict(shardings, sep="/")
    wanted = initial_shapes(config, shardings, paths=paths)
    stored = {p: x for p, x in wanted.items() if base is not None and p in base.about["parameters"]}
    small = [p for p, x in stored.items() if x.dtype == jnp.int8]
    found = {p: x for p, x in _quantized(base, small, places).items() if p in wanted}
    found.update(base_weights.load_parameters(base, {p: x for p, x in stored.items() if p not in small}) if stored else {})
    found.update(_random(config, {p: x for p, x in wanted.items() if p not in found}))
    return unflatten_dict(found, sep="/")


def _quantized(base, paths, places):
    """Float weights of a base -> {path: int8, path of the scale: float32} on the mesh; one is there as float at a time."""
    found = {}
    for path in paths:
        shape, dtype = (base.about["parameters"][path][key] for key in ("shape", "dtype"))
        weight = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=places[path])
        for name, x in quantize_weight(path, base_weights.load_parameters(base, {path: weight})[path]).items():
            found[name] = jax.device_put(x, places[name])
    return found


def _frozen_dtype(path, built, config, base):
    """`built` is the dtype of the parameter in a new model: int8 weights and their scales keep it."""
    if built == jnp.int8 or re.search(INT8_SCALES, path):
        return built
    if base is not None and path in base.about["parameters"]:
        return base.about["parameters"][path]["dtype"]
    return config.model.dtype


def _random(config, wanted):
    """{path: ShapeDtypeStruct} -> {path: array} from the seed. Only what is asked for is computed: XLA drops the rest."""
    if not wanted:
        return {}
    model = plum.PlumConfig.from_dict(config.model)

    def draw():
        flat = flatten_dict(plum.init_params(model, config.seed), sep="/")
        return {path: flat[path].astype(x.dtype) for path, x in wanted.items()}

    return jax.jit(draw, out_shardings={path: x.sharding for path, x in wanted.items()})()


def random_parts(config):
    """Parts that a model of this config has from the seed alone, though it has a base: [] when nothing is missing."""
    base = open_base_of(config)
    if base is None:
        return []
    part_of = {path.partition("/")[0] for path in flatten_dict(plum.build(plum.PlumConfig.from_dict(config.model))[1], sep="/")}
    return [part for part in base.missing if part in part_of]


def check_loaded(base, params):
    """Compares a few outputs of loaded base weights with those that were stored with them; about a second.

    Args:
      base: Base. params: nested dictionary with (at least) the parameters of the base.

    Raises:
      UserError: they differ.
    """
    config, flat = plum.PlumConfig.from_dict(base.config.model), flatten_dict(params, sep="/")
    parts = {path.partition("/")[0] for path in flat}
    missing = sorted(
        {*base.missing, *(part for part in base_weights.PARTS if part not in parts)}
    )  # also what this model leaves out
    paths = selfcheck.parameters(config, missing)
    int8 = any(flat[path].dtype == jnp.int8 for path in paths)
    take = functools.partial(_chosen_layers, base, config, flat) if int8 else flat.get
    file = base.folder / "check.npz"
    try:
        with file.open("rb") as opened:
            stored = dict(np.load(opened))
    except Exception as error:  # OSError, or what zipfile, zlib and NumPy raise for damage
        raise UserError(f"{file}: is missing or damaged ({type(error).__name__}); put it back or convert again") from error
    found = selfcheck.outputs(config, missing, {path: take(path) for path in paths}, chosen=int8)
    if missing != sorted(base.missing):
        stored = {name: x for name, x in stored.items() if name in found}
    selfcheck.compare(found, stored, base.folder)


def _chosen_layers(base, config, flat, path):
    """The layers of a parameter that the check reads; weights that are int8 here come from the file, where they are exact."""
    layers = selfcheck.layers_of(config, path)
    if flat[path].dtype != jnp.int8:
        return flat[path] if layers is None else flat[path][np.array(layers)]
    keys = [(path, layer) for layer in (layers or [None])]
    found = base_weights.read_slices(base.folder / "params", base.about["parameters"], keys)
    return found[path, None] if layers is None else np.stack([found[key] for key in keys])
