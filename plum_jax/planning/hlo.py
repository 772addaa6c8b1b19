"""The HLO text of a compiled program: its computations, and how often each of them runs."""

import collections
import functools
import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end in their bits: bf16, f8e4m3fn, s32
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")


class Array(NamedTuple):
    dims: tuple
    bytes: int
    on_chip: bool  # in a space of its own in a TPU's layouts, such as S(1), and not in HBM


class Instruction(NamedTuple):
    name: str
    opcode: str
    arrays: tuple  # of the result, a tuple's flattened
    operands: tuple  # names
    rest: str  # operands and attributes as text
    root: bool

    def attribute(self, name):
        """Name of the computation in `name=%computation`, or None."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found and found[1]


class Module(NamedTuple):
    computations: dict  # name -> [Instruction]
    entry: str


def parse(text):
    """HLO text of a compiled module -> Module."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        start = COMPUTATION.match(line)
        if start:
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif current is not None:
            found = INSTRUCTION.match(line)
            if found:
                root, name, shape, opcode, rest = found.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", _arguments(rest)))
                current.append(Instruction(name, opcode, arrays_of(shape), operands, rest, bool(root)))
    return Module(computations, entry)


def _arguments(rest):
    """The part of the text after '(' that the matching ')' ends; layouts hold brackets of their own."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:place]
    return rest


@functools.lru_cache(maxsize=1 << 16)
def arrays_of(shape):
    """'(f32[8,4]{1,0}, s32[])' -> (Array, Array)."""
    return tuple(_array(*found) for found in ARRAY.findall(shape))


def _array(dtype, dims, layout):
    digits = re.search(r"\d+", dtype)
    bits = BITS.get(dtype, int(digits[0]) if digits else 0)
    dims = tuple(int(d) for d in dims.split(",") if d)
    return Array(dims, math.prod(dims) * bits // 8, "S(" in layout)


def runs(module):
    """Module -> {computation: how often it runs}: the entry, and what loops, conditions and calls run from there.

    The insides of fusions and reductions are not among them. A loop runs as often as XLA says, or as the largest constant
    says that its condition holds; once where there is none. Every branch of a condition counts.
    """
    counted = collections.Counter()

    def visit(name, times):
        counted[name] += times
        for instruction in module.computations[name]:
            inner = times * (trips(instruction, module) if instruction.opcode == "while" else 1)
            for callee in _callees(instruction):
                if callee in module.computations:
                    visit(callee, inner)

    visit(module.entry, 1)
    return dict(counted)


def _callees(instruction):
    if instruction.opcode == "while":
        return [instruction.attribute("body")]
    if instruction.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        if branches:
            return re.findall(r"%?([\w.\-]+)", branches[1])
        return [instruction.attribute("true_computation"), instruction.attribute("false_computation")]
    if instruction.opcode in ("call", "async-start"):
        names = ("to_apply", "called_computation", "calls")
        return [callee for name in names if (callee := instruction.attribute(name))][:1]
    return []


def trips(instruction, module):
    """Number of times that a `while` runs its body."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
    if known:
        return int(known[1])
    constants, todo = [], [instruction.attribute("condition")]
    while todo:
        for i in module.computations.get(todo.pop(), ()):
            if i.opcode == "constant" and re.match(r"\d+\)", i.rest) and i.arrays and not i.arrays[0].dims:
                constants.append(int(i.rest.partition(")")[0]))
            elif i.opcode == "fusion":  # the comparison may be fused
                todo.append(i.attribute("calls"))
    return max(constants, default=1)
