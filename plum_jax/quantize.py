"""Weight-only int8 for the language model: half of the memory of bfloat16, a quarter of float32.

Kernels of the decoder layers and of the head become int8 with a float32 scale per output channel, the token table int8 with
a scale per row. Everything that sees pixels or draws masks (CLIP, the projector, SAM, the mask branch, the span heads),
norms and adapters stay as they are. `config.model.llama.int8` is the switch by which `plum.build` expects these parameters.
"""

import re

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from plum_jax.errors import UserError
from plum_jax.models.layers import to_int8

KERNEL = r"^llama/(layers/\w+_proj|lm_head)/kernel$"
TABLE = "llama/embed"

_to_int8 = jax.jit(to_int8, static_argnames="axis")  # fused: no float32 copy of a stack of layers


def quantize(params):
    """Float parameters of the whole model, a nested dictionary -> those of the same model with `llama.int8`.

    Leaves that are not quantised are returned as they came.
    """
    flat = {}
    for path, x in flatten_dict(params, sep="/").items():
        flat.update(quantize_weight(path, x) if path == TABLE or re.search(KERNEL, path) else {path: x})
    return unflatten_dict(flat, sep="/")


def quantize_weight(path, weight):
    """One float weight -> {its path: int8, the path of its scale: float32}, laid out as the weight is."""
    values, scale = _to_int8(weight, axis=-1 if path == TABLE else -2)
    return {path: values, f"{path}_scale": scale}


def quantize_model(loaded):
    """LoadedModel -> the same with int8 weights and the config that says so. UserError when they are int8 already."""
    if loaded.config.model.llama.get("int8", False):
        raise UserError(f"{loaded.path or 'the model'}: its language model is int8 already; leave out --int8")
    config = loaded.config.copy_and_resolve_references()
    with config.model.llama.unlocked():
        config.model.llama.int8 = True
    return loaded._replace(config=config, params=quantize(loaded.params))


def count_bytes(params):
    """{"language model": bytes, "all": bytes} of a nested dictionary of arrays."""
    sizes = {path: x.size * x.dtype.itemsize for path, x in flatten_dict(params, sep="/").items()}
    return {"language model": sum(n for path, n in sizes.items() if path.startswith("llama/")), "all": sum(sizes.values())}
