"""`plum plan`: compiles the real programs of a config for hardware that need not be there, and says what they need of it."""

import argparse
import json
import sys
import time

from plum_jax import cli, console
from plum_jax.config_io import add_config_flag, parse_args
from plum_jax.errors import UserError

PROGRAMS = ("train", "prefill", "decode", "masks")
NAMES = {  # of the figures of `memory`, in the order in which they are printed
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "inputs": "batch or cache",
    "activations": "activations kept",
    "temporaries": "temporaries",
    "results": "results",
    "program": "the program itself",
}


def main(argv):
    parser = argparse.ArgumentParser("plum plan", description=__doc__)
    add_config_flag(parser)
    parser.add_argument(
        "--topology", default="local", metavar="NAME",
        help="a TPU slice, by its shape (v5e:16x16, v5p:2x4x4) or its name (v5e-16, v4-128); default: this machine",
    )  # fmt: skip
    parser.add_argument(
        "--programs", default="train", metavar="A,B", help=f"what to compile, of {', '.join(PROGRAMS)} (default: train)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="rows of prefill, decode and masks, over all devices (default: 8 for each device that holds rows)",
    )
    parser.add_argument("--no-advice", action="store_true", help="what does not fit is not tried with other settings")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    args, overrides = parse_args(parser, argv)
    names = tuple(dict.fromkeys(args.programs.split(",")))
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        raise UserError(f"--programs {args.programs}: {unknown[0]!r} is not known; use {', '.join(PROGRAMS)}")
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows {args.rows}: is not a positive number; give 1 or more")
    found = plan(args, overrides, names, sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(found, indent=2))
    return 0 if found["fits"] else 1


def plan(args, overrides, names, stream):
    """-> the object of `--json`. Prints to `stream` on the way."""
    from plum_jax.planning import chips

    if args.topology != "local":
        chips.parse_topology(args.topology)
        chips.without_accelerator()

    from plum_jax.initial import resolve_config
    from plum_jax.planning.advice import advise, smallest_slice
    from plum_jax.planning.measure import MARGIN, measure
    from plum_jax.planning.programs import prepare
    from plum_jax.run_record import versions

    config = resolve_config(args.config, overrides)
    target = chips.open_target(args.topology)
    say = lambda text="": print(text, file=stream, flush=True)  # noqa: E731
    console.header("plan", device=False, stream=stream)
    say(f"  config    {' '.join([args.config, *(f'--config.{x}' for x in overrides)])}")
    known = versions() | chips.compiler_version()
    say(f"  compiler  {', '.join(f'{name} {known[name]}' for name in ('jax', 'jaxlib', 'libtpu') if name in known)}")
    say(f"  target    {len(target.devices)} x {target.kind}, {_size(target.memory)} each ({target.name})")
    found = {
        "config": args.config, "overrides": overrides, "topology": target.name, "device": target.kind,
        "devices": len(target.devices), "device_memory": target.memory, "margin_required": MARGIN, "fits": True, "programs": {},
        "versions": known,
    }  # fmt: skip
    for name in names:
        began = time.monotonic()
        say(f"\n{name}: tracing and compiling (tens of seconds to minutes)...")
        program = prepare(name, config, target, args.rows)
        found["mesh"] = dict(program.mesh.shape)
        about = measure(program, target)
        for line in lines_of(about, target, found["mesh"]):
            say(f"  {line}")
        if not about["fits"] and not args.no_advice:
            say(f"  {time.monotonic() - began:.0f} s; looking for a change that makes it fit")
            about["advice"] = advise(name, config, target, args.rows, lambda text: say(f"    {text}"))
            say(f"  {_advised(about['advice'], smallest_slice(program, target), target)}")
        found["programs"][name] = about
        found["fits"] &= about["fits"]
    say(f"\n{'Everything fits' if found['fits'] else 'It does not fit'} with a margin of at least {MARGIN:.0%}.")
    return found


def lines_of(about, target, mesh):
    """Measure of a program -> lines of text."""
    memory = about["memory"]
    yield f"mesh      {', '.join(f'{axis} {size}' for axis, size in mesh.items())}; all figures are per device"
    known = [(label, memory[name]) for name, label in NAMES.items() if memory.get(name) is not None]
    yield "memory    " + ", ".join(f"{label} {_size(size)}" for label, size in known)
    verdict = "fits" if about["fits"] else "DOES NOT FIT"
    total = "at least " if not about["compiled"] else ""
    yield f"total     {total}{_size(memory['total'])} of {_size(memory['device'])}, margin {memory['margin']:.1%}: {verdict}"
    if not about["compiled"]:
        yield f"compiled  {'no: it cannot fit' if about['seconds'] is None else 'the compiler gave up for lack of memory'}"
        return
    flops = about["flops"]
    again = flops["executed"] / max(flops["model"], 1) - 1
    computed = f", {again:.0%} of it computed again to save memory" if again > 0.005 else ""
    yield f"work      {flops['per_device'] / 1e12:.3f} TFLOP{computed}; {_size(about['memory_traffic'])} to and from memory"
    moved = [f"{counts['count']:,} {kind} ({_size(counts['bytes'])})" for kind, counts in sorted(about["collectives"].items())]
    yield f"links     {', '.join(moved) or 'nothing'}"
    if about["whole_parameters_gathered"]:
        names = sorted({x["parameter"] for x in about["whole_parameters_gathered"]})
        yield f"warning   all layers at once are gathered of {', '.join(names)}: the mesh splits them in vain"
    yield from _estimated(about["estimate"])
    yield f"compiled  in {about['seconds']:.0f} s, {about['cpu_seconds']:.0f} s of processor time"


def _estimated(guess):
    if guess is None:
        yield "estimate  none: the peak figures of this device are not known"
        return
    parts = ", ".join(f"{name} {value:.3g} s" for name, value in guess["seconds"].items())
    yield (
        f"estimate  {guess['step_seconds']:.3g} s at best ({parts}), MFU at most {guess['mfu']:.0%}, "
        f"{guess['per_second']:.3g} {guess['unit']} a second: a roofline of peak rates, not a measurement"
    )


def _advised(advice, smallest, target):
    from plum_jax.planning.advice import describe

    if advice is None:
        return f"no mesh, number of micro-batches or remat makes it fit; it takes at least {smallest} x {target.kind}"
    memory = advice["memory"]
    return (
        f"it fits with {describe(advice['overrides'], advice['rows'])}: {_size(memory['total'])} of {_size(memory['device'])}, "
        f"margin {memory['margin']:.1%} (compiled in {advice['seconds']:.0f} s)"
    )


def _size(size):
    """Bytes -> '1.25 GiB': what is sold as 16 GB of HBM is 16 GiB."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="plan"))
