"""What one device moves in one run of a compiled program: collectives by kind, and bytes to and from its memory."""

import itertools
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
            for one in _started(instruction, module):
                kind = one.opcode.removesuffix("-start")
                arrays = _results(one)
                size, counts = sum(x.bytes for x in arrays), collectives[kind]
                counts["count"] += times
                counts["bytes"] += times * size
                counts["moved"] += times * _moved(kind, size, _group_size(one.rest, devices))
                if kind == "all-gather":
                    gathered += [(x.dims, times) for x in arrays]
            memory += times * _memory(instruction, results, module)
    found = {kind: counts for kind, counts in collectives.items() if counts["count"]}
    return Traffic(found, round(memory), gathered)


def _started(instruction, module):
    """Collectives that an instruction does or starts. A TPU spreads one over several fusions, which all name it: the first
    of them starts it, the others compute beside it."""
    if instruction.opcode.removesuffix("-start") in COLLECTIVES:
        return [instruction]
    body = _fused(instruction, module)
    if not any("AsyncCollectiveStart" in i.rest for i in body):
        return []
    return [i for i in body if i.opcode.removesuffix("-start") in COLLECTIVES]


def _fused(instruction, module):
    return module.computations.get(instruction.attribute("calls"), ()) if instruction.opcode == "fusion" else ()


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
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
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
        return _fusion(instruction, operands, _fused(instruction, module))
    if instruction.opcode in READS_A_PART:
        return _hbm(instruction.arrays) + (_hbm_share(operands[0], instruction) if operands else 0)
    if instruction.opcode == "dynamic-update-slice" and len(operands) > 1:
        return 2 * _hbm_of(operands[1])
    return _hbm(instruction.arrays) + sum(map(_hbm_of, operands))


def _fusion(instruction, operands, body):
    """Bytes that a fusion reads and writes: what it slices or updates in place counts as the part that it touches."""
    by_name = {i.name: i for i in body}
    parameters = {int(i.rest.partition(")")[0]): i.name for i in body if i.opcode == "parameter"}
    passed, kept = _passed_on(instruction) if any(i.opcode in COLLECTIVES for i in body) else ((), ())
    total, written = 0, _hbm(x for number, x in enumerate(instruction.arrays) if number not in kept)
    for number, operand in enumerate(operands):
        if operand is None or number in passed:
            continue
        users = [i for i in body if parameters.get(number) in i.operands]
        slices, updates = ([i for i in users if i.opcode in kinds] for kinds in (READS_A_PART, ("dynamic-update-slice",)))
        if not users or len(slices) + len(updates) < len(users) or any(i.operands[0] != parameters[number] for i in users):
            total += _hbm_of(operand)
            continue
        total += min(_hbm_of(operand), sum(_hbm_share(operand, i) for i in slices))
        if updates and _hbm_of(operand):  # the result is that operand with a part written anew
            part = sum(sum(x.bytes for x in by_name[i.operands[1]].arrays) for i in updates if i.operands[1] in by_name)
            written += min(0, part - _hbm_of(operand))
    return total + max(written, 0)


def _passed_on(instruction):
    """(numbers of operands, numbers of results) that are the same memory: buffers of a collective that is under way."""
    aliases = re.findall(r"\{(\d*)\}: \((\d+), \{\}", instruction.rest.partition("output_to_operand_aliasing=")[2])
    return {int(operand) for _, operand in aliases}, {int(result or 0) for result, _ in aliases}


def _hbm(arrays):
    return sum(x.bytes for x in arrays if not x.on_chip)


def _hbm_of(instruction):
    return _hbm(instruction.arrays) if instruction is not None else 0


def _hbm_share(source, taken):
    """Bytes of the slices that `taken` holds, where they come out of HBM."""
    return sum(x.bytes for x in taken.arrays) if source is not None and _hbm_of(source) else 0


def whole_parameters(gathered, parameters):
    """All-gathers whose result is a whole stacked parameter, all layers at once, which a loop over layers should never make.

    An array is taken for a parameter when its axes, in any order and some of them taken apart, are those of the parameter, one
    of which may still be split over `tensor`. The same number of elements is not enough: the kernel of a single layer whose
    heads were made an axis may have that too.

    Args:
      gathered: as of `Traffic`. parameters: {path: shapes} of the parameters with a leading layer axis that are split; the
        shapes are the whole one, and that of what a device has when all is gathered but the axis that `tensor` splits.

    Returns:
      [{"parameter", "shape", "times"}].
    """
    found = []
    for dims, times in gathered:
        for path, shapes in parameters.items():
            if any(_made_of(dims, shape) for shape in shapes):
                found.append({"parameter": path, "shape": list(dims), "times": times})
                break
    return found


def _made_of(dims, shape):
    """Whether dims, multiplied in groups, are the axes of a shape: (4, 7, 64, 8) of (28, 64, 8)."""
    groupings = itertools.product(range(len(shape)), repeat=len(dims))  # for each of dims the axis that it belongs to
    return any(
        all(math.prod(x for x, at in zip(dims, axes, strict=True) if at == axis) == size for axis, size in enumerate(shape))
        for axes in groupings
    )
