"""The mesh, one table of rules for parameters, and the split of the batch."""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from plum_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES = (  # first match wins; specs name the trailing axes, a leading layer axis stays whole
    (r"(^|/)(mask_decoder|prompt_encoder|feedback)/", P()),  # 4 million parameters that every span reads
    (r"/embed$", P("tensor", "fsdp")),  # the vocabulary is padded: a sharded axis must divide evenly
    (r"/embed_scale$", P("tensor")),  # of int8 weights: one scale per row of the table, per output of a kernel
    (r"/((q|k|v|gate|up)_proj|linear1|lm_head|hidden)/kernel$", P("fsdp", "tensor")),
    (r"/((q|k|v|gate|up)_proj|linear1|lm_head|hidden)/kernel_scale$", P("tensor")),
    (r"/(o_proj|out_proj|down_proj|linear2)/kernel$", P("tensor", "fsdp")),
    (r"/(o_proj|out_proj|down_proj|linear2)/kernel_scale$", P("fsdp")),
    (r"(^|/)projector/kernel$", P("fsdp", "tensor")),
    (r"/lora_b$", P(None, "tensor")),
    (r"", P()),
)
ROWS = ("data", "fsdp")  # what images and conversations are split over


def make_mesh(sizes, devices=None):
    """{"data": -1, "fsdp": 1, "tensor": 1} -> mesh over all devices; one size may be -1, the rest of the devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    given = [sizes[axis] for axis in AXES]
    known = math.prod(size for size in given if size != -1)
    shape = [len(devices) // known if size == -1 else size for size in given]
    if math.prod(shape) != len(devices):
        fix = "give sizes whose product divides them" if -1 in given else "set one of the sizes to -1"
        raise UserError(f"config.mesh: {dict(sizes)} does not multiply to {len(devices)} devices; {fix}")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def mesh_of_processes(mesh):
    """The same devices with `data` over the processes: each of them has whole parameters, split over its own devices."""
    devices = sorted(mesh.devices.flat, key=lambda device: device.process_index)  # all have as many
    tensor = math.gcd(mesh.shape["tensor"], len(jax.local_devices()))
    return Mesh(np.reshape(devices, (jax.process_count(), -1, tensor)), AXES, axis_types=(AxisType.Auto,) * 3)


def to_first_process(params, mesh):
    """Parameters on a mesh of several processes -> the same on the devices of process 0 alone; None on the others.

    All must call it. The copy is split over the devices of a process, and it goes leaf by leaf: besides its shards, a device of
    process 0 holds its part of the copy, one of another process its part of a single leaf.
    """
    mesh = mesh_of_processes(mesh)
    here = Mesh(mesh.devices[:1], AXES, axis_types=mesh.axis_types)

    def one(x, sharding):
        copy = jax.block_until_ready(jax.device_put(x, sharding))
        if jax.process_index():
            return None
        shards = [shard.data for shard in copy.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(here, sharding.spec), shards)

    copies = jax.tree.map(one, params, tree_sharding(params, mesh))
    return None if jax.process_index() else copies


def path_name(path):
    """A jax key path -> 'llama/layers/q_proj/kernel'."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path)


def tree_sharding(tree, mesh, rules=RULES):
    """A NamedSharding for every leaf. Optimizer state needs no table of its own: its paths end in the parameters' names.

    An axis that its mesh axis does not divide stays whole, which only small models meet.
    """

    def one(path, x):
        name = path_name(path)
        spec = next(spec for pattern, spec in rules if re.search(pattern, name))
        if x.ndim < len(spec):  # a scalar or a factored statistic of the optimizer
            return NamedSharding(mesh, P())
        spec = [None] * (x.ndim - len(spec)) + list(spec)
        spec = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, x.shape, strict=True)]
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh):
    """Micro-batched arrays [micro, images, ...]: images over data and fsdp."""
    return NamedSharding(mesh, P(None, ROWS))


def put_batch(batch, mesh, micro_batches):
    """This host's Batch of NumPy arrays -> global arrays [micro, rows, ...], rows split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x.reshape(micro_batches, -1, *x.shape[1:])), batch
    )


def replicated(mesh):
    return NamedSharding(mesh, P())


def compiler_options(mesh):
    """What `jax.jit` tells the compiler of a program over a mesh.

    A TPU's compiler takes a product with a split kernel of more than some MiB apart, into one product for each shard, so that
    shards travel while products run. With kernels split over `fsdp` every piece then reads and writes the whole result: several
    times the traffic to memory of a kernel that is gathered first (docs/sharding.md).
    """
    tpu = all(device.platform == "tpu" for device in mesh.devices.flat)
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": str(1 << 20)} if tpu else None


def split_rows(x, *, last=None):
    """Says to XLA that the first axis of an activation [R, ...] is split over data and fsdp and the last one over the mesh
    axis `last`; without it XLA may gather the rows, to split a width that a parameter has split.

    The identity without a mesh (`jax.set_mesh`), where the mesh has other axes, where an axis does not divide evenly, and
    within `jax.shard_map`, whose devices have parts of their own (evaluation).
    """
    mesh = jax.sharding.get_abstract_mesh()
    auto = all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    if mesh.empty or not auto or not set(AXES) <= set(mesh.shape) or not isinstance(x.shape[0], int):
        return x
    rows = ROWS if x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    last = last if last and x.shape[-1] % mesh.shape[last] == 0 else None
    return jax.lax.with_sharding_constraint(x, P(rows, *[None] * (x.ndim - 2), last))
