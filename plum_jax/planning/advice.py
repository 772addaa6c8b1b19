"""The change of a config that makes a program fit: candidates in order, each tried by arithmetic and then by compiling."""

import math

from plum_jax.config_io import apply_override
from plum_jax.errors import UserError
from plum_jax.planning.measure import MARGIN, could_fit, measure
from plum_jax.planning.programs import prepare
from plum_jax.sharding import AXES


def advise(name, config, target, rows, say):
    """The first change that makes the program fit -> {"overrides": [...], "rows": int or None, **its measure}, or None.

    Args:
      name, config, target, rows: as of `prepare`. say: called with one line about every change that is tried.
    """
    for overrides, fewer in _candidates(name, config, len(target.devices), rows):
        changed = config.copy_and_resolve_references()
        for override in overrides:
            apply_override(changed, override)
        try:
            program = prepare(name, changed, target, fewer)
        except UserError:  # the batch does not divide among these devices
            continue
        if not could_fit(program, target):
            continue
        say(f"trying {describe(overrides, fewer)}")
        found = measure(program, target)
        if found["fits"]:
            return {"overrides": overrides, "rows": fewer, **found}
    return None


def describe(overrides, rows):
    """The options of a change as they are typed."""
    return " ".join([*(f"--config.{x}" for x in overrides), *([f"--rows={rows}"] if rows else [])])


def _candidates(name, config, devices, rows):
    """Yields (overrides, rows), from the change that costs least to the one that changes most; each has those before it."""
    sizes = _resolved(config.mesh, devices)
    if sizes is None:
        return
    rest = devices // sizes["tensor"]
    mesh = []
    if sizes["fsdp"] < rest:
        mesh = _mesh(config, data=1, fsdp=rest, tensor=sizes["tensor"])
        yield mesh, rows
    if name == "train":
        micro, last = config.data.micro_batches, []
        while micro * 2 * rest <= config.data.global_batch:
            micro *= 2
            last = [f"data.micro_batches={micro}"]
            yield [*mesh, *last], rows
        if config.model.remat != "full":
            yield [*mesh, *last, "model.remat=full"], rows
            last.append("model.remat=full")
    else:
        last = []
        fewer = rest if rows is None or rows > rest else None
        if fewer:
            yield mesh, fewer
            rows = fewer
    for tensor in (2, 4, 8):
        if tensor > sizes["tensor"] and devices % tensor == 0 and config.model.llama.heads % tensor == 0:
            yield [*_mesh(config, data=1, fsdp=devices // tensor, tensor=tensor), *last], rows


def _resolved(mesh, devices):
    """Sizes of all axes; None where they do not make up the devices, which `make_mesh` tells of."""
    known = math.prod(mesh[axis] for axis in AXES if mesh[axis] != -1)
    sizes = {axis: devices // known if mesh[axis] == -1 else mesh[axis] for axis in AXES}
    return sizes if math.prod(sizes.values()) == devices else None


def _mesh(config, **sizes):
    """Overrides that give the mesh these sizes; an axis that is -1 and comes to the same is left alone."""
    free = next((axis for axis in AXES if config.mesh[axis] == -1), None)
    return [f"mesh.{axis}={size}" for axis, size in sizes.items() if axis != free and config.mesh[axis] != size]


def smallest_slice(program, target):
    """How many devices would hold what the program cannot do without, if all of it were split evenly among these."""
    return math.ceil(program.least * len(target.devices) / ((1 - MARGIN) * target.memory))
