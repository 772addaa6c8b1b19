"""What one device moves in one run of a compiled program: collectives by kind, and bytes to and from its memory."""

import math
import re
from typing import NamedTuple

from plum_jax.planning import hlo

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
FREE = {  # cost no traffic of their own
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "iota",
    "async-start", "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency",
}  # fmt: skip
READS_A_PART = ("dynamic-slice", "slice", "gather")


class Traffic(NamedTuple):
    collectives: dict  # kind -> {"count", "bytes" of the results, "moved": bytes that the device receives}
    memory_bytes: int  # read from and written to HBM by fusions, copies and single operations
    gathered: list  # [(dims, times)] results of all-gathers


def read_traffic(text):
    """HLO text of a compiled module -> Traffic of one device and one run.

    Arrays in the on-chip memory cost no HBM traffic, and of an array that a fusion only slices, the slice counts.
    """
    module = hlo.parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    devices = int(partitions[1]) if partitions else 1
    collectives = {kind: {"count": 0, "bytes": 0, "moved": 0} for kind in COLLECTIVES}
    memory, gathered = 0, []
    for name, times in hlo.runs(module).items():
        results = {i.name: i for i in module.computations[name]}
        for instruction in module.computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind in collectives:
                arrays = _results(instruction)
                size = sum(x.bytes for x in arrays)
                found = collectives[kind]
                found["count"] += times
                found["bytes"] += times * size
                found["moved"] += times * _moved(kind, size, _group_size(instruction.rest, devices))
                if kind == "all-gather":
                    gathered += [(x.dims, times) for x in arrays]
            memory += times * _memory(instruction, results, module)
    found = {kind: counts for kind, counts in collectives.items() if counts["count"]}
    return Traffic(found, round(memory), gathered)


def _results(instruction):
    """Arrays of the result of a collective. An asynchronous one has (operands, results, ...): the larger half."""
    if not instruction.opcode.endswith("-start") or len(instruction.arrays) < 2:
        return instruction.arrays
    arrays = [x for x in instruction.arrays if x.dims]
    half = len(arrays) // 2
    return max(arrays[:half], arrays[half : 2 * half], key=lambda some: sum(x.bytes for x in some)) if half else arrays


def _group_size(rest, devices):
    """How many devices take part in a collective together."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
    if iota:
        return int(iota[2])
    groups = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(groups[1].split(",")) if groups else devices


def _moved(kind, size, group):
    """Bytes that one device receives at least, for results of `size` bytes on it."""
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (group - 1)
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _memory(instruction, results, module):
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode.endswith("-start"):  # (destination, source, ...) or (operand, result, ...)
        arrays = [x for x in instruction.arrays if x.dims]
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            return _hbm(arrays)
        moved = min((x.bytes for x in arrays), default=0)  # a slice on its way has the whole array beside it
        return moved * sum(not x.on_chip for x in arrays[:2])
    operands = [results.get(name) for name in instruction.operands]
    if instruction.opcode == "fusion":
        return _fusion(instruction, operands, module.computations.get(instruction.attribute("calls"), ()))
    if instruction.opcode in READS_A_PART:
        return _hbm(instruction.arrays) + (_hbm_share(operands[0], instruction) if operands else 0)
    if instruction.opcode == "dynamic-update-slice" and len(operands) > 1:
        return 2 * _hbm_of(operands[1])
    return _hbm(instruction.arrays) + sum(map(_hbm_of, operands))


def _fusion(instruction, operands, body):
    """Bytes that a fusion reads and writes: what it slices or updates in place counts as the part that it touches."""
    by_name = {i.name: i for i in body}
    parameters = {}
    for i in body:
        if i.opcode == "parameter":
            parameters[int(i.rest.partition(")")[0])] = i
    total, written = 0, _hbm(instruction.arrays)
    for number, operand in enumerate(operands):
        if operand is None:
            continue
        users = [i for i in body if number in parameters and parameters[number].name in i.operands]
        first = [i for i in users if i.operands[:1] == (parameters[number].name,)]
        if users and users == first and all(i.opcode in READS_A_PART for i in users):
            total += min(_hbm_of(operand), sum(_hbm_share(operand, i) for i in users))
        elif users and users == first and all(i.opcode == "dynamic-update-slice" for i in users):
            part = sum(sum(x.bytes for x in by_name[i.operands[1]].arrays) for i in users if i.operands[1] in by_name)
            if not any(x.on_chip for x in operand.arrays):
                written += min(0, part - _hbm_of(operand))  # the result is that operand with a part written anew
        else:
            total += _hbm_of(operand)
    return total + max(written, 0)


def _hbm(arrays):
    return sum(x.bytes for x in arrays if not x.on_chip)


def _hbm_of(instruction):
    return _hbm(instruction.arrays) if instruction is not None else 0


def _hbm_share(source, taken):
    """Bytes of the slices that `taken` holds, where they come out of HBM."""
    return sum(x.bytes for x in taken.arrays) if source is not None and _hbm_of(source) else 0


def whole_parameters(gathered, parameters):
    """All-gathers whose result is a whole stacked parameter, all layers at once, which a loop over layers should never make.

    Args:
      gathered: as of `Traffic`. parameters: {path: (shape, mesh size of `tensor` if that splits it, else 1)} of the parameters
        with a leading layer axis that are split.

    Returns:
      [{"parameter", "shape", "times"}].
    """
    found = []
    for dims, times in gathered:
        for path, (shape, tensor) in parameters.items():
            if shape[0] in dims and math.prod(dims) in (math.prod(shape), math.prod(shape) // tensor):
                found.append({"parameter": path, "shape": list(dims), "times": times})
                break
    return found
