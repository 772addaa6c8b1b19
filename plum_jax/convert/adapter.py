"""LoRA adapters of PEFT (M 9.6): read, checked to be of PLUM's kind, and folded into base weights.

PLUM has adapters on q_proj and v_proj of every decoder layer: y = W x + alpha / rank * B A x.
"""

import functools
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plum_jax.convert.tensors import Tensor, read_file
from plum_jax.errors import UserError

PREFIX = "base_model.model."  # of every name inside a PEFT model
NAME = re.compile(r"model\.layers\.(\d+)\.self_attn\.([qv]_proj)\.lora_([AB])\.weight")
PLAIN = {  # entries of adapter_config.json that change what the matrices mean, and the values under which they do not
    "peft_type": ("LORA", None),
    "bias": ("none", None),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
    "alora_invocation_tokens": ([], None),
    "init_lora_weights": (True, False, "gaussian", None),  # pissa, olora and loftq change the base weights as well
}
MERGE = "merge it into its base with PEFT's merge_and_unload, and convert that"


class Adapter(NamedTuple):
    """`tensors`: {model.layers.{i}.self_attn.{q,v}_proj.lora_A.weight: Tensor [r, d], ...lora_B.weight: Tensor [d, r]}."""

    tensors: dict
    rank: int
    alpha: float
    dropout: float


def plain_names(tensors):
    """{name inside a PEFT model: Tensor} -> names of the model itself; LoRA matrices keep theirs, without `.default`."""
    renamed = {}
    for name, tensor in tensors.items():
        new = re.sub(r"(\.lora_[AB])\.default\.", r"\1.", name.removeprefix(PREFIX)).replace(".base_layer.", ".")
        if new in renamed:
            raise UserError(f"{tensor.file}: {name} is there twice, as {new} too; the file mixes two models, remove one")
        renamed[new] = tensor
    return renamed


def read_adapter(folder):
    """A folder with adapter_config.json and adapter_model.safetensors or .bin -> Adapter, nothing of it read yet.

    Raises:
      UserError: a file is missing; adapters of other modules, ranks or kinds; a matrix is missing or of another shape.
    """
    folder = Path(folder)
    path = folder / "adapter_config.json"
    config = _config(path)
    files = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise UserError(f"{folder}: holds neither {files[0].name} nor {files[1].name}; download one of them")
    adapter = Adapter(plain_names(read_file(file)), config["r"], float(config["lora_alpha"]), float(config["lora_dropout"]))
    _check_matrices(file, adapter)
    return adapter


def _config(path):
    """adapter_config.json -> dictionary, all of whose entries are of PLUM's kind."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a folder that PEFT's save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: is not a dictionary; download it again")
    for key, plain in PLAIN.items():
        if config.get(key) not in plain:
            raise UserError(f"{path}: {key} is {config[key]!r}, which PLUM's adapters have not; {MERGE}")
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else ():  # text is a regular expression: the names of the file decide
        if str(target).rpartition(".")[2] not in ("q_proj", "v_proj"):
            raise UserError(f"{path}: target module {target!r} has an adapter, PLUM has them on q_proj and v_proj; {MERGE}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise UserError(f"{path}: r is {rank!r}, not a rank; download it again")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise UserError(f"{path}: lora_alpha is {alpha!r}, not a positive number; download it again")
    dropout = config.setdefault("lora_dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{path}: lora_dropout is {dropout!r}, not a rate; set it to 0 or more and below 1")
    return config


def _check_matrices(file, adapter):
    """UserError unless all layers from 0 on have A [r, d] and B [d, r] on q_proj and v_proj, and nothing else is there."""
    layers = 0
    for name, tensor in adapter.tensors.items():
        found = NAME.fullmatch(name)
        if not found:
            raise UserError(f"{file}: {name} is not an adapter of q_proj or v_proj, where PLUM has them; {MERGE}")
        layers = max(layers, int(found[1]) + 1)
        side = 0 if found[3] == "A" else 1
        if len(tensor.shape) != 2 or tensor.shape[side] != adapter.rank:
            raise UserError(
                f"{file}: {name} is {list(tensor.shape)}, but r is {adapter.rank} in adapter_config.json; get both again"
            )
    if 4 * layers == len(adapter.tensors):
        return
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            for side in "AB":
                name = f"model.layers.{layer}.self_attn.{module}.lora_{side}.weight"
                if name not in adapter.tensors:
                    raise UserError(f"{file}: has no {name}; PLUM adapts q_proj and v_proj of every layer, download it again")


def merge_adapter(base, adapter):
    """{name: Tensor} of the base, Adapter -> {name: Tensor} with W + alpha / rank * B A in place of W.

    The sum is float32 and stays so: B A is small beside W, and in bfloat16, with 8 bits of precision, much of it would be
    lost and the model answer otherwise than the one that was trained (M D54).

    Raises:
      UserError: the base has no such module, or one of another shape.
    """
    merged = dict(base)
    for name_a, a in adapter.tensors.items():
        if ".lora_A." not in name_a:
            continue
        b = adapter.tensors[name_a.replace(".lora_A.", ".lora_B.")]
        name = name_a.replace(".lora_A.weight", ".weight")
        if name not in base:
            raise UserError(f"{a.file}: has an adapter of {name}, which the base has not; give the base that it was trained on")
        weight = base[name]
        if weight.shape != (b.shape[0], a.shape[1]):
            raise UserError(
                f"{a.file}: the adapter of {name} is for {[b.shape[0], a.shape[1]]}, the base has {list(weight.shape)}; "
                "give the base that it was trained on"
            )
        read = functools.partial(_merged, weight, a, b, adapter.alpha / adapter.rank)
        merged[name] = Tensor(weight.shape, "float32", weight.file, read)
    return merged


def _merged(weight, a, b, scale):
    w, a, b = (x.read().astype(np.float32) for x in (weight, a, b))
    return w + np.float32(scale) * (b @ a)
