"""Kills training runs at random moments and proves that nothing is lost: `python -m tools.kill_loop --kills 30 --out DIR`.

A very small model is trained once without interruption and once under fire: `plum train` in a process of its own is killed with
SIGKILL while it starts, between saves and during saves, and now and then asked to stop with SIGTERM; each time the same command
goes on. After every death all finished checkpoints are read and compared with the uninterrupted run. Exit 1 at the first fault.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from plum_jax import cli
from plum_jax.errors import UserError
from plum_jax.run_record import write_json

KEEP, SAVE_EVERY, LOG_EVERY, STOP_EVERY = 3, 5, 3, 6
# The language model and the tagger alone, as small as they go: it is the loop that is put to the test.
SMALL = (
    "model.llama.width=24", "model.llama.mlp=32", "model.clip.width=24", "model.clip.mlp=32", "model.clip.depth=1",
    "model.clip.image_size=48", "model.sam.width=24", "model.sam.mlp=32", "model.sam.depth=2", "model.sam.global_blocks=(1,)",
    "model.sam.out_width=16", "model.sam.image_size=32", "model.sam.window=3", "model.decoder.mlp=16", "model.decoder.depth=1",
    "model.tagger.mlp=32", "model.tagger.dropout=0.1", "model.feedback=false", "loss.bce=0", "loss.shape_weight=0",
    "loss.patch=0", "optim.name=adamw", "trainable=llama|span_tagger", "data.global_batch=4", "data.grounded=(1,2)",
    f"train.log_every={LOG_EVERY}", f"train.save_every={SAVE_EVERY}",
)  # fmt: skip
TIMES = ("images_per_second", "data_wait")  # columns that no two runs have alike
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MOMENTS = ("starting", "between saves", "saving", "saving")


class Fault(Exception):
    """What must not be."""


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m tools.kill_loop", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="deaths by SIGKILL (default: 30)")
    parser.add_argument("--steps-per-kill", type=int, default=40, help="steps of the runs (default: 40 a kill)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", required=True, help="new folder for the runs, their output and kill_loop.json")
    args = parser.parse_args(argv)
    out = Path(args.out).absolute()
    if args.kills < 1:
        raise UserError(f"--kills: {args.kills} is not a positive number; give 1 or more")
    if args.steps_per_kill < 1:
        raise UserError(f"--steps-per-kill: {args.steps_per_kill} is not a positive number; give 1 or more")
    if (out / "under_fire").exists():
        raise UserError(f"{out}: holds a kill loop already; remove it or give another folder")
    began = time.monotonic()
    try:
        facts = kill_loop(out, args.kills, args.kills * args.steps_per_kill, random.Random(args.seed))
    except Fault as fault:
        print(f"FAULT: {fault}; the output of all runs is in {out}/output", file=sys.stderr)
        return 1
    facts["seconds"] = round(time.monotonic() - began, 1)
    write_json(out / "kill_loop.json", facts)
    counts = f"{facts['kills']} kills, {facts['stops']} stops, {facts['read']} checkpoints read"
    print(f"Wrote {out}/kill_loop.json: {counts}, no fault")
    return 0


def kill_loop(out, kills, steps, rng):
    """-> what kill_loop.json holds; raises Fault."""
    from data_pipelines.make import Arguments, make_dataset, parse_split_sizes

    make_dataset(out / "data", Arguments(0, parse_split_sizes("train=4,val=2,test=2")), workers=1)
    whole, fire = (Runs(out, name, steps) for name in ("whole", "under_fire"))
    whole.finish("train.keep=1000000")
    facts = {"steps": steps, "kills": 0, "stops": 0, "read": 0, "moments": {}}
    while facts["kills"] < kills:
        number = facts["kills"] + facts["stops"] + 1
        moment = "stopping" if number % STOP_EVERY == 0 else rng.choice(MOMENTS)
        before, began = fire.steps(), time.monotonic()
        process, where = fire.start(f"train.keep={KEEP}"), f"life {number} ({moment})"
        fire.wait_until(process, moment, rng)
        if moment == "stopping":
            fire.stop(process, where)
        else:
            process.kill()
            if process.wait() != -signal.SIGKILL:
                raise Fault(f"{where}: the run was at its end before it was killed; raise --steps-per-kill")
        facts["stops" if moment == "stopping" else "kills"] += 1
        facts["moments"][moment] = facts["moments"].get(moment, 0) + 1
        facts["read"] += check_checkpoints(fire, whole, before, where)
        print(f"{where}: {time.monotonic() - began:.1f} s, steps {fire.steps()} are whole", flush=True)
    fire.finish(f"train.keep={KEEP}")
    facts["read"] += check_checkpoints(fire, whole, [], "the end")
    check_end(fire, whole)
    return facts


class Runs:
    """The runs of one folder, one after the other."""

    def __init__(self, out, name, steps):
        self.folder, self.output, self.lives, self.number_of_steps = out / name, out / "output", 0, steps
        self.name, self.data, self.cache = name, out / "data", out / "cache"

    def start(self, *overrides):
        values = [*SMALL, f"data.folder={self.data}", f"train.steps={self.number_of_steps}", *overrides]
        command = [sys.executable, "-m", "plum_jax.cli", "train", "--config=configs/tiny.py", f"--workdir={self.folder}"]
        env = {**os.environ, "XLA_FLAGS": XLA_FLAGS, "XDG_CACHE_HOME": str(self.cache), "JAX_PLATFORMS": "cpu"}
        self.output.mkdir(exist_ok=True)
        self.lives += 1
        with open(self.text_file(), "w") as text:
            return subprocess.Popen(
                [*command, *(f"--config.{value}" for value in values)],
                cwd=Path(__file__).parent.parent, env=env, stdin=subprocess.DEVNULL, stdout=text, stderr=text,
            )  # fmt: skip

    def text_file(self):
        return self.output / f"{self.name}_{self.lives:03d}.txt"

    def finish(self, *overrides):
        """A run until its end."""
        if self.start(*overrides).wait() != 0 or self.number_of_steps not in self.steps():  # status 0 is that of SIGTERM too
            raise Fault(f"{self.text_file()}: the run failed, or something else stopped it")

    def stop(self, process, where):
        """SIGTERM: the process saves, says so, and ends with status 0."""
        process.send_signal(signal.SIGTERM)
        status, text = process.wait(), self.text_file().read_text()
        if status != 0 or "Preempted" not in text:
            raise Fault(f"{where}: SIGTERM ended with status {status}")

    def steps(self):
        """Numbers of all folders that look like finished checkpoints."""
        folder = self.folder / "checkpoints"
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []

    def last_row(self):
        from plum_jax.logger import read_metrics

        rows = read_metrics(self.folder)
        return rows[-1]["step"] if rows else 0

    def wait_until(self, process, moment, rng):
        """A random moment of the named kind in the life of a process. Fault when it ends by itself."""
        text, row = self.text_file(), rng.randint(0, 4) * LOG_EVERY
        self._until(process, lambda: moment == "starting" or "Compiled in" in text.read_text())
        first = self.last_row()
        if moment == "starting":
            time.sleep(rng.uniform(0.0, self.usual_start()))
        else:
            self._until(process, lambda: self.last_row() >= first + row)
            if moment == "saving":
                folder = self.folder / "checkpoints"
                self._until(process, lambda: any("tmp" in p.name for p in folder.iterdir()))
            time.sleep(rng.uniform(0.0, 0.1))
        if process.poll() not in (None, 0):
            raise Fault(f"{text}: the run ended by itself with status {process.returncode}")

    def usual_start(self):
        """Seconds from the start of a process to its first step, of the longest life so far."""
        record = self.output.parent / "whole" / "run.json"
        seconds = json.loads(record.read_text())["seconds"]
        return max(1.0, 2 * (seconds["total"] - seconds["loop"]))

    def _until(self, process, happened):
        while not happened() and process.poll() is None:
            time.sleep(0.002)


def check_checkpoints(fire, whole, before, where):
    """Reads all finished checkpoints -> their number. Fault: half of one, a lost one, or other numbers than without kills.

    Args:
      before: steps that were there before this life.
    """
    from plum_jax.checkpoint import steps_in

    found = fire.steps()
    if found != steps_in(fire.folder / "checkpoints"):
        raise Fault(f"{where}: of the folders {found} only {steps_in(fire.folder / 'checkpoints')} are checkpoints")
    lost = [step for step in before if step not in found and sum(other > step for other in found) < KEEP]
    if lost:
        raise Fault(f"{where}: checkpoints {lost} are lost, {found} are there")
    for step in found:
        arrays = read_sealed(fire.folder, step, where)
        if (whole.folder / "checkpoints" / str(step)).exists() and arrays != read_sealed(whole.folder, step, where):
            raise Fault(f"{where}: checkpoint {step} is not that of the uninterrupted run")
    return len(found)


def read_sealed(folder, step, where):
    """Reads all arrays of a checkpoint, compares them with their seal -> digests."""
    from orbax.checkpoint import v1 as ocp

    from plum_jax import seal
    from plum_jax.checkpoint import read_config

    path = folder / "checkpoints" / str(step)
    try:
        sealed = read_config(path)[1]
        with warnings.catch_warnings(action="ignore"):  # that the layout on devices is taken from the file
            state = ocp.load_checkpointables(path, dict(state=None))["state"]
        seal.check_arrays(sealed, state)
    except Exception as error:  # whatever Orbax and TensorStore raise for files that are not whole
        raise Fault(f"{where}: checkpoint {step} cannot be read ({type(error).__name__}: {error})") from error
    return sealed["arrays"]


def check_end(fire, whole):
    """Fault unless the rows of metrics.csv, the events of TensorBoard and the folder are those of an uninterrupted run."""
    from plum_jax.logger import read_metrics

    def rows(runs):
        return [{name: str(value) for name, value in row.items() if name not in TIMES} for row in read_metrics(runs.folder)]

    for ours, theirs in zip(rows(fire), rows(whole), strict=True):
        if ours != theirs:
            raise Fault(f"metrics.csv: {ours} is {theirs} without kills")
    if events(fire.folder) != events(whole.folder):
        raise Fault("TensorBoard: other steps or values than without kills")
    strange = [p.name for p in fire.folder.iterdir() if p.name.startswith(".") or p.name == "corrupt"]
    strange += [p.name for p in (fire.folder / "checkpoints").iterdir() if not p.name.isdigit()]
    if strange or fire.steps()[-1] != fire.number_of_steps:
        raise Fault(f"{fire.folder}: holds steps {fire.steps()} and {strange}")
    if any("Traceback" in path.read_text() for path in fire.output.iterdir()):
        raise Fault(f"{fire.output}: a run showed a traceback")


def events(folder):
    """Sorted (tag, step, value) of all scalars, as text; one that is there twice counts twice."""
    from plum_jax.board import read_events

    found = [key + (value,) for path in (folder / "tensorboard").iterdir() for key, _, value in read_events(path)]
    return sorted((tag, step, str(value)) for tag, step, value in found if tag not in TIMES)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="kill_loop"))
