"""Checkpoint files and folders of PyTorch and Hugging Face as dictionaries of tensors that are read one at a time.

Only headers are read here. Shards are opened one at a time: reading in the order of the dictionary opens each of them once.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plum_jax.convert import files, pickles
from plum_jax.convert.files import close  # noqa: F401 - lets go of the file that is open
from plum_jax.errors import UserError

SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
KINDS = (  # of folders: pattern of the weights, and the name that they have when they are one file
    (r"(?!adapter_).*\.safetensors", "model.safetensors"),
    (r"pytorch_model.*\.bin", "pytorch_model.bin"),
    (r"adapter_model\.safetensors", "adapter_model.safetensors"),
    (r"adapter_model\.bin", "adapter_model.bin"),
)
WRAPPERS = ("state_dict", "model")  # keys under which training programs keep the weights beside other things


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint file that is not read yet. `read` returns it in its own dtype (ml_dtypes.bfloat16)."""

    shape: tuple[int, ...]
    dtype: str  # "float32", "bfloat16", "float16", "int64", ...
    file: Path  # the shard that holds it
    read: Callable[[], np.ndarray]


def read_file(path):
    """One .safetensors, .bin, .pth or .pt file -> {name: Tensor}.

    A flat dictionary of tensors, or one that stands under `state_dict` or `model` in the file.

    Raises:
      UserError: the file is missing, cut off, not what its extension says, or holds anything but tensors.
    """
    path = Path(path)
    if files.check_kind(path) == "safetensors":
        headers, read = _headers(path, files.hold(path, _open_safetensors)), _read_safetensors
    else:
        entries, read = files.hold(path, _open_pickle), _read_pickle
        headers = {name: pickles.header(path, name, x) for name, x in entries.items()}
    if not headers:
        raise UserError(f"{path}: holds no tensor; give a file of weights")
    return {name: Tensor(*header, path, functools.partial(read, path, name)) for name, header in headers.items()}


def _open_safetensors(path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        raise UserError(f"{path}: is cut off or damaged ({error}); copy or download it again") from None


def _headers(path, opened):
    """{name: (shape, name of the dtype)}"""
    found = {}
    for name in opened.keys():  # noqa: SIM118 - not a dictionary
        header = opened.get_slice(name)
        code = header.get_dtype()
        if code not in SAFETENSORS_DTYPES:
            known = ", ".join(SAFETENSORS_DTYPES)
            raise UserError(f"{path}: {name} is of type {code}, not one of {known}; convert the weights to BF16 first")
        found[name] = tuple(header.get_shape()), SAFETENSORS_DTYPES[code]
    return found


def _read_safetensors(path, name):
    return files.hold(path, _open_safetensors).get_tensor(name)


def _open_pickle(path):
    """PyTorch file -> {name: torch tensor}, the dictionary that holds the weights, its names checked."""
    entries = pickles.load(path)
    if isinstance(entries, dict) and {"module", "param_shapes"} <= entries.keys():
        raise UserError(f"{path}: is one file of a DeepSpeed checkpoint; give the folder that holds its global_step folder")
    if isinstance(entries, dict):
        entries = next((entries[key] for key in WRAPPERS if isinstance(entries.get(key), dict)), entries)
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds a {type(entries).__name__}; save a dictionary of names and tensors")
    strange = next((name for name in entries if not isinstance(name, str)), None)
    if strange is not None:
        raise UserError(f"{path}: {strange!r} is not the name of a tensor; save the state dict alone")
    return entries


def _read_pickle(path, name):
    return pickles.to_numpy(files.hold(path, _open_pickle)[name])


def read_folder(path):
    """A folder in the layout of Hugging Face -> {name: Tensor} in the order of its shards.

    Of *.safetensors, pytorch_model*.bin and adapter_model.*, the first kind that is there; with an index, exactly what the
    index lists; without one, all files of that kind.

    Raises:
      UserError: no such files, a shard is missing, index and shards do not agree, two shards hold one name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with *.safetensors or pytorch_model*.bin")
    index, shards = _layout(folder)
    tensors = {}
    for shard in shards:
        for name, tensor in read_file(shard).items():
            if name in tensors:
                raise UserError(f"{shard}: holds {name}, and so does {tensors[name].file.name}; remove the file that is old")
            tensors[name] = tensor
    if index:
        _check_index(index, tensors)
    return tensors


def _layout(folder):
    """Folder -> (index file or None, shards in their order)."""
    names = sorted(p.name for p in folder.iterdir())
    for pattern, single in KINDS:
        indexes = [name for name in names if re.fullmatch(rf"{pattern}\.index\.json", name)]
        if len(indexes) > 1:
            raise UserError(f"{folder}: holds {' and '.join(indexes)}; remove all but one")
        if indexes:
            shards = sorted(set(_weight_map(folder / indexes[0]).values()))
            if single in names and single not in shards:
                raise UserError(f"{folder}: holds {single}, which {indexes[0]} does not name; remove the one that is old")
            return folder / indexes[0], _existing(folder / indexes[0], shards)
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            return None, _complete(folder, found)
    raise UserError(f"{folder}: holds no *.safetensors, pytorch_model*.bin or adapter_model.*; give a folder with one of them")


def _weight_map(index):
    """Index file -> {name of a tensor: name of its shard}."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if found and all(type(shard) is str for shard in found.values()):
            return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{index}: has no weight_map of tensors and files; download it again")


def _existing(index, shards):
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise UserError(f"{index}: names {shard!r}, which is not a file of this folder; download it again")
        if not (index.parent / shard).exists():
            raise UserError(f"{index.parent / shard}: is missing, {index.name} names it; download it too")
    return [index.parent / shard for shard in shards]


def _complete(folder, found):
    """Shards without an index: UserError when one of model-00001-of-0000m is missing."""
    for name in found:
        numbered = re.fullmatch(r"(.*-)(\d+)(-of-(\d+)\..*)", name)
        for k in range(1, int(numbered[4]) + 1) if numbered else ():
            shard = f"{numbered[1]}{k:0{len(numbered[2])}}{numbered[3]}"
            if shard not in found:
                raise UserError(f"{folder / shard}: is missing, {name} is there; download it too")
    return [folder / name for name in found]


def _check_index(index, tensors):
    """UserError unless every tensor is in the shard that the index says, and the shards hold nothing else."""
    listed = _weight_map(index)
    for name, shard in listed.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise UserError(f"{index}: says that {name} is in {shard}, where it is not; download both again")
    for name, tensor in tensors.items():
        if name not in listed:
            raise UserError(f"{tensor.file}: holds {name}, which {index.name} does not list; download both again")
