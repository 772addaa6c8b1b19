"""`plum plan` of the 7B and the 13B model for six TPU slices, as a table: tpu_plans.json and tpu_plans.md.

    python -m tools.tpu_plans --out benchmarks                          # what is not there yet, training steps first
    python -m tools.tpu_plans --out benchmarks --only 13b/v5e-16/train  # these cells, again
    python -m tools.tpu_plans --out benchmarks --table                  # the page from the JSON file, nothing is compiled

Needs the extra `plan` and no TPU. Every cell is a process of its own, of 5 to 15 minutes of processor time for a training step
and up to one for the others, and is written when it ends: a run that was stopped goes on where it was.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from plum_jax import cli, console
from plum_jax.plan import PROGRAMS
from plum_jax.run_record import write_json, write_text

GIB = 1 << 30
SIZES = ("13b", "7b")
# Parameters split over all chips. As few micro-batches of the 128 images as leave each chip its share, four images at most: the
# layers are gathered for every one of them. On 256 chips two share an image, each with half of every layer.
SLICES = {
    "v5e-16": ("mesh.fsdp=16", "data.micro_batches=2"),
    "v5e-64": ("mesh.fsdp=64", "data.micro_batches=1"),
    "v5e-256": ("mesh.data=1", "mesh.fsdp=128", "mesh.tensor=2", "data.micro_batches=1"),
    "v5p-64": ("mesh.fsdp=32", "data.micro_batches=1"),
    "v6e-64": ("mesh.fsdp=64", "data.micro_batches=1"),
    "v4-128": ("mesh.fsdp=64", "data.micro_batches=1"),
}
ROWS = 4  # of prefill, decode and masks, for each part of the mesh that holds rows of its own
CELLS = [f"{size}/{name}/{program}" for program in PROGRAMS for size in SIZES for name in SLICES]
HEAD = (
    "model", "slice", "program", "mesh", "parameters", "optimizer", "activations", "temporaries", "total of memory", "margin",
    "gathered whole", "TFLOP", "HBM", "links", "at best", "bound", "MFU", "compiled",
)  # fmt: skip
INTRO = """# Plans for TPU slices

What `plum plan` says of `configs/partonomy.py` in 13B and 7B for six TPU slices: the real programs, compiled by the TPU
compiler for those chips and run on none. [docs/plan.md](../docs/plan.md) says what each figure is. All figures are per chip, in
GiB, TFLOP and GB. A training step is 128 images of 512 positions; the other programs have the rows that the mesh column says.
Mesh: data x fsdp x tensor, and for training the number of micro-batches. The time is that of the slowest of computing, HBM and
links at peak rates: a bound, not a measurement, and so is the MFU. Compiled: processor time to trace and compile.
`fits` wants 10 % of the memory free. Gathered whole: how many stacked parameters a chip holds all layers of at once; a loop
over layers gathers one layer at a time, so this should be 0.

"""
AGAIN = """
## Again

    pip install -e '.[plan]'
    python -m tools.tpu_plans --out benchmarks

goes on where the table ends; `--only CELL` compiles some again. One cell by hand:

"""


def main(argv=None):
    parser = cli.Parser("tpu_plans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of tpu_plans.json and tpu_plans.md")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="cells such as 13b/v5e-16/train, compiled again")
    parser.add_argument("--table", action="store_true", help="write the page only")
    args = parser.parse_args(argv)
    wrong = [cell for cell in args.only or () if cell not in CELLS]
    if wrong:
        parser.error(f"{wrong[0]!r} is no cell; they are SIZE/SLICE/PROGRAM of {SIZES}, {tuple(SLICES)}, {PROGRAMS}")
    console.check_out(args.out)
    file = Path(args.out, "tpu_plans.json")
    done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    failed = []
    for cell in () if args.table else args.only or [cell for cell in CELLS if cell not in done]:
        began = time.monotonic()
        found = run(cell)
        if found is None:
            failed.append(cell)
            continue
        done[cell] = found
        write_json(file, {key: done[key] for key in CELLS if key in done})
        print(f"{cell}: {'fits' if found['fits'] else 'does not fit'}, {time.monotonic() - began:.0f} s", flush=True)
    write_text(file.with_suffix(".md"), page(done))
    print(f"Wrote {file} and {file.with_suffix('.md')}: {len(done)} of {len(CELLS)} cells")
    return int(bool(failed))


def command(cell):
    """'13b/v5e-16/train' -> the arguments of `plum plan`."""
    size, name, program = cell.split("/")
    options = [f"--config.{override}" for override in SLICES[name]]
    if program != "train":
        options.append(f"--rows={rows(name)}")
    return [f"--config=configs/partonomy.py:size={size}", f"--topology={name}", f"--programs={program}", *options]


def rows(name):
    """Rows of the programs of an answer on a slice: its parameters are split over `fsdp`, and `data` is 1."""
    return ROWS * next(int(x.partition("=")[2]) for x in SLICES[name] if x.startswith("mesh.fsdp="))


def run(cell):
    """The object that `plum plan --json` prints for a cell; None, with its message on stderr, where it fails."""
    arguments = [sys.executable, "-m", "plum_jax.plan", *command(cell), "--json", "--no-advice"]
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        print(f"{cell}: plum plan ended with {done.returncode}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout)


def page(done):
    """{cell: object of `plum plan --json`} -> Markdown."""
    if not done:
        return INTRO
    cells = [row(cell, done[cell]) for cell in CELLS if cell in done]
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(f"| {' | '.join(x)} |" for x in cells)]
    versions = next(iter(done.values()))["versions"]
    names = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "jaxlib", "libtpu") if name in versions)
    left = ", ".join(_missing(done))
    left = f"\nNot compiled yet: {left}.\n" if left else ""
    example = f"    plum plan {' '.join(command(CELLS[0]))}\n"
    return INTRO + "\n".join(lines) + f"\n\nWith {names}.\n{left}{AGAIN}{example}"


def _missing(done):
    """Cells that are not done; a program of which none is, as one."""
    for program in PROGRAMS:
        missing = [cell for cell in CELLS if cell.endswith(f"/{program}") and cell not in done]
        yield from [f"every cell of {program}"] if len(missing) == len(SIZES) * len(SLICES) else missing


def row(cell, found):
    """One line of the table."""
    size, name, program = cell.split("/")
    about, mesh = found["programs"][program], found["mesh"]
    memory, shape = about["memory"], " x ".join(str(n) for n in mesh.values())
    micro = next((x.partition("=")[2] for x in found["overrides"] if x.startswith("data.micro_batches")), "")
    gib = lambda key: "" if memory[key] is None else f"{memory[key] / GIB:.2f}"  # noqa: E731
    total = f"{memory['total'] / GIB:.2f} of {memory['device'] / GIB:.0f}"
    verdict = f"{memory['margin']:.0%}, {'fits' if about['fits'] else 'no'}"
    share = micro if program == "train" else f"{rows(name)} rows"
    start = [
        size, name, program, f"{shape}, {share}", gib("parameters"), gib("optimizer"),
        gib("activations"), gib("temporaries"), total, verdict,
    ]  # fmt: skip
    if not about["compiled"]:
        return start + [""] * 8
    guess, moved = about["estimate"], sum(counts["moved"] for counts in about["collectives"].values())
    return [
        *start, str(len(about["whole_parameters_gathered"])),
        f"{about['flops']['per_device'] / 1e12:.3g}", f"{about['memory_traffic'] / 1e9:.3g}", f"{moved / 1e9:.3g}",
        f"{guess['step_seconds']:.3g} s", guess["bound"], f"{guess['mfu']:.1%}", f"{about['cpu_seconds']:.0f} s",
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="tpu_plans"))
