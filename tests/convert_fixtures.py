"""Checkpoints of other programs, written as those programs write them: what the tests of conversion share."""

import contextlib
import dataclasses
import enum
import sys
import types
from collections import OrderedDict

import numpy as np


def as_torch(array):
    """NumPy array of any dtype, bfloat16 included -> torch tensor with its own memory."""
    import torch

    content = torch.frombuffer(bytearray(array.tobytes() or b"\0" * 8), dtype=getattr(torch, array.dtype.name))
    return content[: array.size].reshape(array.shape)


@contextlib.contextmanager
def deepspeed_classes():
    """Classes with the names of DeepSpeed's, importable inside the block alone: pickles name them, readers lack them."""

    class LossScaler:
        def __init__(self, dtype):
            self.cur_scale, self.dynamic, self.dtype = 1.0, False, dtype

    class ZeroStageEnum(int, enum.Enum):
        gradients = 2
        weights = 3

    @dataclasses.dataclass
    class fragment_address:  # noqa: N801 - its name
        numel: int
        start: int

    places = {
        LossScaler: "deepspeed.runtime.fp16.loss_scaler",
        ZeroStageEnum: "deepspeed.runtime.zero.config",
        fragment_address: "deepspeed.utils.tensor_fragment",
    }
    made = {}
    for cls, module in places.items():
        cls.__module__, cls.__qualname__ = module, cls.__name__
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        setattr(made[module], cls.__name__, cls)
    assert not made.keys() & sys.modules.keys()
    sys.modules.update(made)
    try:
        yield LossScaler, ZeroStageEnum, fragment_address
    finally:
        for name in made:
            del sys.modules[name]


def write_zero(run, trained, frozen, *, aliases=None, world=1, bf16=True, step=500, stage=2, groups=None, extra=None):
    """A checkpoint of DeepSpeed 0.9.5 with ZeRO-2 (M 9.7), `RUN/latest` included.

    Args:
      trained, frozen: {name in memory, base_model.model. included: float32 array}; the order of `trained` is that of the
        flat vector. `module` holds all of them in the dtype of the run.
      aliases: {second name: name in `trained` or `frozen`}, one tensor under two names in `module`.
      groups: lists of names of `trained`, one per parameter group; default: one group of all.
      extra: more entries of the model file.

    Returns:
      The step folder.
    """
    import torch

    folder = run / f"global_step{step}"
    folder.mkdir(parents=True)
    (run / "latest").write_text(folder.name)
    dtype = torch.bfloat16 if bf16 else torch.float16
    module, shapes, parts = OrderedDict(), [], [[] for _ in range(world)]
    for names in groups or [list(trained)]:
        flat = torch.from_numpy(np.concatenate([trained[name].reshape(-1) for name in names]))
        padding = -len(flat) % (2 * world)
        padded = torch.cat([flat, torch.zeros(padding)])
        run_dtype, start = padded.to(dtype), 0  # parameters become views of one vector
        for name in names:
            module[name] = run_dtype[start : start + trained[name].size].view(trained[name].shape)
            start += trained[name].size
        shapes.append(OrderedDict((name, torch.Size(trained[name].shape)) for name in names))
        for rank, part in enumerate(padded.clone().chunk(world)):
            parts[rank].append(part[: len(part) - (padding if rank == world - 1 else 0)])
    module.update({name: torch.from_numpy(array).to(dtype) for name, array in frozen.items()})
    module.update({second: module[name] for second, name in (aliases or {}).items()})
    with deepspeed_classes() as (scaler, stages, address):
        states = dict(
            module=module, buffer_names=[], optimizer=None, param_shapes=shapes, shared_params={}, frozen_param_shapes=None,
            frozen_param_fragments=None, lr_scheduler={"last_batch_iteration": 9}, data_sampler=None, random_ltd=None,
            sparse_tensor_module_names=set(), skipped_steps=0, global_steps=step, global_samples=80 * step,
            dp_world_size=world, mp_world_size=1, ds_config={"zero_optimization": {"stage": stages(stage)}}, ds_version="0.9.5",
        )  # fmt: skip
        torch.save({**states, **(extra or {})}, folder / "mp_rank_00_model_states.pt")
        for rank in range(world):
            moments = {
                0: dict(exp_avg=torch.zeros(len(parts[rank][0])), exp_avg_sq=torch.zeros(len(parts[rank][0])), step=step)
            }
            optimizer = dict(
                loss_scaler=scaler(dtype), dynamic_loss_scale=False, overflow=False, clip_grad=1.0,
                base_optimizer_state=dict(state=moments, param_groups=[dict(lr=3e-4, betas=(0.8, 0.95), params=[0])]),
                single_partition_of_fp32_groups=parts[rank], zero_stage=stages(stage), group_paddings=[0],
                partition_count=[world] * len(shapes), ds_version="0.9.5",
                param_slice_mappings=[OrderedDict((name, address(1, 0)) for name in group) for group in shapes],
            )  # fmt: skip
            name = f"{'bf16_' if bf16 else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            torch.save(dict(optimizer_state_dict=optimizer, ds_config={}, ds_version="0.9.5"), folder / name)
    return folder
