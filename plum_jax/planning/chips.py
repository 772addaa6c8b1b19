"""Accelerators that a plan can be made for, and the names of TPU slices."""

import importlib.metadata
import math
import os
import re
from typing import NamedTuple

from plum_jax.errors import UserError

GIB = 1 << 30


class Chip(NamedTuple):
    """Peak figures of one chip as its maker states them."""

    kind: str
    flops: float  # bf16 FLOP/s, dense
    hbm: int  # bytes
    hbm_rate: float  # bytes/s
    link_rate: float  # bytes/s that a chip can receive from others over all of its links together


# cloud.google.com/tpu/docs: the pages of v4, v5e, v5p and v6e, as of 2026.
TPUS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1600e9, 400e9),
}
CORES = {"v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}  # a slice named v4-128 counts cores: 64 chips
LOCAL = {  # of jax's Device.device_kind; NVIDIA's data sheets for the SXM boards
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "NVIDIA A100-SXM4-80GB": Chip("NVIDIA A100", 312e12, 80 * 10**9, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("NVIDIA H100", 989e12, 80 * 10**9, 3350e9, 450e9),
    "NVIDIA H200": Chip("NVIDIA H200", 989e12, 141 * 10**9, 4800e9, 450e9),
}


class Target(NamedTuple):
    """What a program is compiled for."""

    name: str  # "v5e:4x4" or "local"
    devices: list  # of jax; those of a slice need not be there
    kind: str
    memory: int  # bytes that one device has for a program
    chip: Chip | None  # None: peak figures are not known, as of a CPU


def parse_topology(text):
    """'v5e:4x4' or 'v5e-16' -> (generation, 'v5e:4x4', chips).

    A slice named by its size gets the shape that Google Cloud gives it by default: square in two dimensions, as near to a
    cube as powers of two allow in three.

    Raises:
      UserError: no such generation, or a size that is no slice.
    """
    found = re.fullmatch(r"(v\d+[a-z]*)(?::(\d+(?:x\d+){1,2})|-(\d+))", text)
    if not found or found[1] not in TPUS:
        raise UserError(
            f"--topology {text!r}: is not known; give local, or one of {', '.join(TPUS)} and a size, such as v5e:4x4 or v5e-16"
        )
    generation, shape, size = found.groups()
    dimensions = 2 if CORES[generation] == 1 else 3
    example = f"{generation}:{'x'.join('4' * dimensions)}"
    if shape is None:
        shape = None if int(size) % CORES[generation] else _default_shape(int(size) // CORES[generation], dimensions)
        if shape is None:
            raise UserError(f"--topology {text!r}: is no slice of {generation}; give its shape, such as {example}")
    sides = [int(side) for side in shape.split("x")]
    if len(sides) != dimensions or min(sides) < 1:
        raise UserError(f"--topology {text!r}: slices of {generation} have {dimensions} dimensions, such as {example}")
    return generation, f"{generation}:{shape}", math.prod(sides)


def _default_shape(chips, dimensions):
    """16, 2 -> '4x4'; 32, 3 -> '2x4x4'; None where the number of chips is no power of two."""
    if chips < 1 or chips & (chips - 1):
        return None
    powers, sides = chips.bit_length() - 1, []
    for left in range(dimensions, 0, -1):
        sides.append(1 << (powers // left))
        powers -= powers // left
    return "x".join(map(str, sorted(sides)))


def open_target(text):
    """--topology -> Target. UserError where it is no slice, or libtpu is missing or refuses it."""
    if text == "local":
        return _local()
    generation, name, chips = parse_topology(text)
    devices = _slice_devices(generation, name)
    if len(devices) != chips:
        raise UserError(f"--topology {text}: jax sees {len(devices)} devices in {chips} chips; give another shape")
    chip = TPUS[generation]
    return Target(name, devices, chip.kind, chip.hbm, chip)


def _local():
    import jax
    import psutil

    devices = jax.devices()
    chip = LOCAL.get(devices[0].device_kind)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    memory = memory or psutil.virtual_memory().available // len(jax.local_devices())
    return Target("local", list(devices), devices[0].device_kind, memory, chip)


def without_accelerator():
    """Before jax is imported: this process compiles for a slice that is not there, and touches no device of this machine."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks Google's metadata server what machine this is
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # these two say what it would warn that it cannot find
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several plans at a time
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _slice_devices(generation, name):
    """Devices of a slice, one a chip."""
    import importlib.util

    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {name}: needs the TPU compiler, libtpu, which is missing; pip install 'plum_jax[plan]'")
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}  # jax sees the two cores of a v4 chip as one
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # whatever libtpu raises; its first line says what is wrong with the shape
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--topology {name}: libtpu refuses it ({first[:200]}); give another shape") from error


def compiler_version():
    """{"libtpu": version} where that is installed."""
    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}
