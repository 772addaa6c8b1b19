"""Training checkpoints of DeepSpeed 0.9.5 with ZeRO-2 (M 9.7): float32 masters of what was trained, the rest as it ran.

    RUN/latest                                          text: the name of the newest step folder
    RUN/global_stepK/mp_rank_00_model_states.pt         `module`, every weight in the dtype of the run, and `param_shapes`
    RUN/global_stepK/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt   one per rank: a part of the flat float32 masters

The masters of all trained parameters, in the order of `param_shapes`, are one vector, cut into equal parts for the ranks; a
parameter may lie in two of them. DeepSpeed itself is not needed: objects of its classes in the files become stand-ins.
"""

import functools
import math
import re
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plum_jax.convert import files, pickles
from plum_jax.convert.adapter import plain_names
from plum_jax.convert.tensors import Tensor
from plum_jax.errors import UserError

DROPPED = ("teacher_llm.", "seg_h_ref")  # a copy of the model for the KL term, and a value cached by the first forward
OPTIM_FILE = re.compile(r"(bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
ALIGNMENT = 2  # the flat vector is padded to a multiple of 2 * ranks


class _Group(NamedTuple):
    """A parameter group: one flat vector over all ranks."""

    index: int
    starts: dict  # {name: (start in the vector, shape)}
    optims: list  # [(rank file, first index, index after the last)]


def training_names(tensors):
    """Names as training saves them -> names of a merged checkpoint and of LoRA matrices (`adapter.plain_names`).

    Drops the teacher and the cached reference. For what `read_zero` reads, and for the single file that zero_to_fp32.py
    makes of it.
    """
    return {name: tensor for name, tensor in plain_names(tensors).items() if not name.startswith(DROPPED)}


def read_zero(folder):
    """A run folder, by its file `latest`, or one global_step folder -> {name: Tensor}, named by `training_names`.

    Trained tensors are float32, from the masters; frozen ones and buffers have the dtype of the run. A second name of a
    trained tensor (the convolutions of the mask pooler are the prompt encoder's) reads the master too.

    Raises:
      UserError: a file is missing, damaged or of another run, is ZeRO-3 or model-parallel, or calls what is not DeepSpeed's.
    """
    folder = _step_folder(Path(folder))
    path = folder / "mp_rank_00_model_states.pt"
    files.check_kind(path)
    states = _states(path)
    groups = _groups(path, folder, states)
    module = states["module"]
    headers = {name: pickles.header(path, name, tensor) for name, tensor in module.items()}
    _check_trained(path, groups, headers)
    found = {name: _master(group, name) for group in groups for name in group.starts}
    masters = {_place(module[name]): found[name] for name in found if module[name].numel()}
    for name, header in headers.items():
        stored = Tensor(*header, path, functools.partial(_read_module, path, name))
        found.setdefault(name, masters.get(_place(module[name]), stored))
    return training_names(found)


def _step_folder(folder):
    """Run folder or step folder -> step folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a DeepSpeed checkpoint, the folder that holds the file `latest`")
    if any(folder.glob("*_model_states.pt")):
        step = folder
    else:
        step = folder / _latest(folder)
        if not step.is_dir():
            raise UserError(
                f"{folder / 'latest'}: names {step.name}, which is not there; copy it too, or give another step folder"
            )
    if any(step.glob("zero_pp_rank_*_model_states.pt")):
        raise UserError(
            f"{step}: is of ZeRO stage 3, which PLUM was not trained with; convert it with its zero_to_fp32.py first"
        )
    more = sorted(p.name for p in step.glob("mp_rank_*_model_states.pt") if p.name != "mp_rank_00_model_states.pt")
    if more:
        raise UserError(
            f"{step / more[0]}: is of a model-parallel run, which PLUM has not; give a checkpoint of one model rank"
        )
    return step


def _latest(folder):
    path = folder / "latest"
    if not path.is_file():
        steps = sorted(p.name for p in folder.glob("global_step*"))
        advice = f"give one of its folders, such as {steps[-1]}" if steps else "give the folder of a DeepSpeed checkpoint"
        raise UserError(f"{folder}: has no file `latest`; {advice}")
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"{path}: {name[:40]!r} is not the name of a step folder; write one, such as global_step500")
    return name


def _states(path):
    """Model file -> dictionary with `module` and `param_shapes` (a list of {name: shape}, one per parameter group)."""
    states = pickles.load(path, ("deepspeed.",))
    if not isinstance(states, dict) or not isinstance(states.get("module"), dict):
        raise UserError(f"{path}: has no `module`; give a checkpoint that DeepSpeed wrote with ZeRO stage 2")
    shapes = states.get("param_shapes")
    shapes = [shapes] if isinstance(shapes, dict) else shapes
    sound = isinstance(shapes, list) and any(shapes) and all(isinstance(group, dict) for group in shapes)
    if not sound or not all(isinstance(shape, tuple) for group in shapes for shape in group.values()):
        raise UserError(f"{path}: has no `param_shapes`; give a checkpoint that DeepSpeed wrote with ZeRO stage 2")
    return {**states, "param_shapes": shapes}


def _groups(path, folder, states):
    """-> [_Group], after a look at the size of every part of every rank."""
    ranks = _rank_files(path, folder, states)
    sizes = [[_size(file, part, i) for i, part in enumerate(files.hold(file, _open_optim))] for file in ranks]
    groups = []
    for index, shapes in enumerate(states["param_shapes"]):
        ends = list(accumulate((math.prod(shape) for shape in shapes.values()), initial=0))
        part = -(-ends[-1] // (ALIGNMENT * len(ranks))) * ALIGNMENT
        for rank, (file, size) in enumerate(zip(ranks, sizes, strict=True)):
            if len(size) != len(states["param_shapes"]):
                wrong = f"{len(size)} parameter groups, not {len(states['param_shapes'])}"
            elif size[index] == part or (rank == len(ranks) - 1 and size[index] == ends[-1] - part * rank):
                continue  # the last rank may leave out its padding
            else:
                wrong = f"{size[index]} values of the masters, not {part}"
            raise UserError(f"{file}: holds {wrong}: it is not of the same save as {path.name}; copy the folder again")
        starts = {name: (start, tuple(shapes[name])) for name, start in zip(shapes, ends[:-1], strict=True)}
        groups.append(_Group(index, starts, [(file, part * rank, part * (rank + 1)) for rank, file in enumerate(ranks)]))
    return groups


def _rank_files(path, folder, states):
    """The optimizer files of ranks 0 to world - 1."""
    found = {}
    for file in sorted(folder.iterdir()):
        name = OPTIM_FILE.fullmatch(file.name)
        if name and int(name[2]) in found:
            raise UserError(f"{file}: is rank {int(name[2])}, and so is {found[int(name[2])].name}; remove the one that is old")
        if name:
            found[int(name[2])] = file
    world = states.get("dp_world_size")
    if type(world) is not int or world < 1:
        raise UserError(f"{path}: has dp_world_size {world!r}; give a checkpoint that DeepSpeed wrote with ZeRO stage 2")
    prefix = "bf16_" if any(file.name.startswith("bf16_") for file in found.values()) else ""
    for rank in range(world):
        if rank not in found:
            name = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            raise UserError(f"{folder / name}: is missing, the checkpoint is of {world} ranks; copy it too")
    if len(found) > world:
        raise UserError(f"{found[max(found)]}: is of rank {max(found)}, the checkpoint is of {world} ranks; remove it")
    for file in found.values():
        files.check_kind(file)
    return [found[rank] for rank in range(world)]


def _open_optim(path):
    """Optimizer file of a rank -> its parts of the flat masters, one tensor per parameter group."""
    states = pickles.load(path, ("deepspeed.",))
    state = states.get("optimizer_state_dict") if isinstance(states, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("single_partition_of_fp32_groups"), list):
        raise UserError(f"{path}: holds no float32 masters of ZeRO stage 2; give a checkpoint that DeepSpeed wrote with it")
    stage = state.get("zero_stage")
    stage = stage.args[0] if isinstance(stage, pickles.StandIn) and stage.args else stage
    if stage not in (1, 2):
        raise UserError(f"{path}: is of ZeRO stage {stage}; give a checkpoint of stage 2")
    return state["single_partition_of_fp32_groups"]


def _size(path, part, index):
    shape, dtype = pickles.header(path, f"single_partition_of_fp32_groups[{index}]", part)
    if len(shape) != 1 or dtype != "float32":
        raise UserError(f"{path}: its part of the masters is {dtype}{list(shape)}, not a float32 vector; copy the folder again")
    return shape[0]


def _check_trained(path, groups, headers):
    for group in groups:
        for name, (_, shape) in group.starts.items():
            if name not in headers or headers[name][0] != shape:
                have = f"{list(headers[name][0])} in `module`" if name in headers else "not in `module`"
                raise UserError(f"{path}: {name} is {list(shape)} in `param_shapes` and {have}; copy or download it again")


def _place(tensor):
    """Where a tensor of an opened file lies: equal for two names of one tensor."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _master(group, name):
    start, shape = group.starts[name]
    first = next((file for file, low, high in group.optims if low <= start < high), group.optims[-1][0])
    return Tensor(shape, "float32", first, functools.partial(_read_master, group, name))


def _read_master(group, name):
    """The slice of the flat vector that is this parameter, from the one or more ranks that hold it."""
    start, shape = group.starts[name]
    stop = start + math.prod(shape)
    values = np.empty(stop - start, np.float32)
    for file, low, high in group.optims:
        low_index, high_index = max(start, low), min(stop, high)
        if low_index < high_index:
            part = files.hold(file, _open_optim)[group.index]
            values[low_index - start : high_index - start] = part[low_index - low : high_index - low].numpy()
    return values.reshape(shape)


def _open_module(path):
    return _states(path)["module"]


def _read_module(path, name):
    return pickles.to_numpy(files.hold(path, _open_module)[name])
