"""PyTorch's files, opened without running anything that they contain (M D53).

A pickle is a program. Only the instructions that rebuild tensors and plain containers are followed (`weights_only`); any
other function or class that a file names is refused by its name, before anything of it is called.
"""

import pickle
import re
import warnings
import zipfile

import ml_dtypes  # noqa: F401 - teaches NumPy the word bfloat16

from plum_jax.errors import UserError

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def import_torch(path):
    """The module torch, or UserError with the way to install it; `path` is the file that needs it."""
    try:
        import torch
    except ImportError:
        message = f"{path}: is a PyTorch file, and PyTorch is not installed; pip install 'plum_jax[convert]'"
        raise UserError(message) from None
    return torch


class StandIn:
    """In place of an object of a library that is not installed: keeps what it was made from and does nothing."""

    def __init__(self, *args):
        self.args = args


def load(path, stand_ins=()):
    """What torch.save wrote: containers and tensors, which stay in the file (memory-mapped) until they are read.

    Args:
      path: a file that `files.check_kind` found to be PyTorch's.
      stand_ins: prefixes such as ("deepspeed.",); objects whose class has such a name become a `StandIn`.

    Raises:
      UserError: PyTorch is not installed; the file is damaged, wants to call anything else, or is a TorchScript program.
    """
    torch = import_torch(path)
    mapped = _is_mappable(path)
    allowed = [(StandIn, name) for name in _unsafe_globals(torch, path) if name.startswith(tuple(stand_ins))]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # of TorchScript archives and of pickle protocols, which are errors below
            return torch.load(path, mmap=mapped, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(torch, path, str(error), allowed)}") from None
    except Exception as error:  # damage shows as RuntimeError, EOFError, struct.error, KeyError and others
        if "TorchScript" in str(error):
            raise UserError(f"{path}: is a TorchScript program; give a file with the weights alone") from None
        raise _damaged(path) from error


def _damaged(path):
    return UserError(f"{path}: is cut off or damaged; copy or download it again")


def _is_mappable(path):
    """Whether the file is a zip of uncompressed records. False for the format before PyTorch 1.6.

    PyTorch always stores, but maps compressed records of an archive that was packed again as if they were stored.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
    except zipfile.BadZipFile:
        raise _damaged(path) from None


def _unsafe_globals(torch, path):
    """Names of the functions and classes in the pickle of a zip that `weights_only` refuses. Reads, does not run, it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip, or not understood: torch.load says what is wrong
        return []


def _refusal(torch, path, message, allowed):
    names = sorted(set(_unsafe_globals(torch, path)) - {name for _, name in allowed}) or re.findall(r"GLOBAL (\S+) w", message)
    advice = "if you trust it, load it in PyTorch and save its state dict alone, best as safetensors"
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"its pickle calls {names[0]}{more}, which weights do not need; nothing was run; {advice}"
    found = re.search(r"Unsupported operand \d+|[Pp]rotocol \d", message)
    detail = f" ({found[0]})" if found else ""
    return f"its pickle has instructions that weights do not need{detail}; nothing was run; {advice}"


def header(path, name, tensor):
    """-> (shape, name of the dtype such as "bfloat16") of an entry of a file; UserError unless it is a dense tensor."""
    torch = import_torch(path)
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{path}: {name} is of type {type(tensor).__name__}, not a tensor; save the state dict alone")
    dtype = str(tensor.dtype).removeprefix("torch.")
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or dtype not in DTYPES:
        what = f"of type {dtype}" if dense else f"not dense ({tensor.layout}, {tensor.device})"
        raise UserError(f"{path}: {name} is {what}; save it as a dense tensor of {', '.join(DTYPES[1:4])}")
    return tuple(tensor.shape), dtype


def to_numpy(tensor):
    """Dense tensor -> array of the same shape and dtype (bfloat16 as ml_dtypes.bfloat16) that owns its memory."""
    import torch

    content = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
    return content.view(str(tensor.dtype).removeprefix("torch.")).reshape(tuple(tensor.shape)).copy()
