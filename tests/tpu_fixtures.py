"""Compiling for TPUs that are not there: libtpu's compiler runs on any machine."""

import os
import warnings

import jax
from jax.sharding import AxisType


def tpu_mesh(*sizes, topology="v5e:2x4"):
    """A mesh data, fsdp, tensor over the chips of a topology."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks the network which TPU it is on otherwise
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def compiled_text(lowered):
    """The program as compiled. Caches keep those for TPU but cannot give them back without one, and say so: not here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        return lowered.compile().as_text()


def kernels_in(text):
    """How many Pallas kernels a compiled program calls."""
    return text.count('custom_call_target="tpu_custom_call"')
