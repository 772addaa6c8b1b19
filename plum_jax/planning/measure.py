"""One program for one target: compiled, and what it needs, moves and at best takes, as a dictionary."""

import re
import time

import jax

from plum_jax.planning.traffic import read_traffic, whole_parameters

MARGIN = 0.10  # of a device's memory that has to stay free
SCALES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def measure(program, target):
    """Program, Target -> dictionary of figures per device, as `plum plan --json` prints it (docs/plan.md).

    A program whose parameters, optimizer state and arguments alone do not fit is not compiled.
    """
    found = {"fits": False, "compiled": False, "seconds": None, "cpu_seconds": None}
    if not could_fit(program, target):
        return found | {"memory": _memory(program.memory, target)}
    began = time.monotonic(), time.process_time()
    traced = program.trace()
    try:
        compiled = _compile(program.mesh, traced)
    except jax.errors.JaxRuntimeError as error:
        used = _used(str(error))
        if used is None:
            raise
        return found | _since(began) | {"memory": _memory(program.memory, target, used=used)}
    took = _since(began)
    memory = _memory(program.memory, target, compiled.memory_analysis(), traced.kept)
    traffic = read_traffic(compiled.as_text())
    flops = {"model": traced.model_flops, "executed": traced.flops, "per_device": traced.flops / len(target.devices)}
    return {
        "fits": memory["margin"] >= MARGIN,
        "compiled": True,
        **took,
        "memory": memory,
        "flops": flops,
        "memory_traffic": traffic.memory_bytes,
        "collectives": traffic.collectives,
        "estimate": estimate(flops, traffic, target, program.work),
        "whole_parameters_gathered": whole_parameters(traffic.gathered, program.stacked),
    }


def could_fit(program, target):
    """Whether what no compiler can save leaves the margin."""
    return program.least <= (1 - MARGIN) * target.memory


def _compile(mesh, traced):
    with jax.set_mesh(mesh):  # constraints on activations name its axes; compiling inside would look for its devices
        lowered = traced.lower()
    return lowered.compile()


def _since(began):
    now = time.monotonic(), time.process_time()  # the latter of all threads
    return {name: round(b - a, 1) for name, a, b in zip(("seconds", "cpu_seconds"), began, now, strict=True)}


def _memory(known, target, analysis=None, kept=0, used=None):
    """Bytes per device by what they are for.

    Args:
      known: memory of a Program. analysis, kept: of the compiled program and its trace.
      used: what the compiler says that a program needs that it gave up on.
    """
    found = known | dict.fromkeys(("activations", "temporaries", "results", "program"))
    if analysis is None:
        used = max(used or 0, sum(known.values()))
    else:
        arguments, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
        arguments = max(arguments, sum(known.values()))  # what a program does not read lies in memory all the same
        found["inputs"] = arguments - known["parameters"] - known["optimizer"]  # with what their layouts add
        found["activations"] = min(kept, temporary)
        found["temporaries"] = temporary - found["activations"]
        found["results"] = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
        found["program"] = analysis.generated_code_size_in_bytes
        used = arguments + temporary + found["results"] + found["program"]
        used = max(used, getattr(analysis, "peak_memory_in_bytes", 0))
    return found | {"total": used, "device": target.memory, "margin": round(1 - used / target.memory, 4)}


def _used(message):
    """Bytes that a program needs of a device, in the message of a compiler that found them too many; None in another one."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    return round(float(found[1]) * SCALES[found[2]]) if found else 0


def estimate(flops, traffic, target, work):
    """Roofline: the step takes as long as the slowest of computing, memory and links at their peak rates; none overlaps
    perfectly with the others, so a real step takes longer. None where the peak figures are not known."""
    chip, devices = target.chip, len(target.devices)
    if chip is None:
        return None
    moved = sum(counts["moved"] for counts in traffic.collectives.values())
    parts = {
        "compute": flops["per_device"] / chip.flops,
        "memory": traffic.memory_bytes / chip.hbm_rate,
        "links": moved / chip.link_rate,
    }
    bound = max(parts, key=parts.get)
    step = parts[bound]
    amount, what = work
    return {
        "seconds": {name: float(f"{value:.4g}") for name, value in parts.items()},
        "step_seconds": float(f"{step:.4g}"),
        "bound": bound,
        "mfu": round(flops["model"] / (devices * chip.flops * step), 4),
        "per_second": float(f"{amount / step:.4g}"),
        "unit": what,
    }
